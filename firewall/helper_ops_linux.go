package firewall

import (
	"errors"
	"fmt"
	"strings"
)

// errMeddled is returned where another tool changed our chains while they were loaded.
var errMeddled = errors.New("another tool changed the chains while they were loaded")

// look says what there is of the guard.
func (p *programs) look() (findings, error) {
	var found findings
	for _, v6 := range p.families() {
		for _, t := range tables() {
			s, err := p.save(v6, t)
			if err != nil {
				return findings{}, err
			}
			if s.foreign() {
				return findings{}, errForeignChain
			}
			found.take(t, s)
		}
	}
	return found, nil
}

// take adds what there is in a table.
func (f *findings) take(t table, s *saved) {
	f.Present = f.Present || s.present()
	f.Digest += s.digest(t)
	f.Grants += s.grants()
	flows, end := s.flows()
	f.Flows = append(f.Flows, flows...)
	f.FlowsEnd = later(f.FlowsEnd, end)
}

// load puts the guard there, and makes sure that it is. Foreign chains are found before
// anything is changed.
func (p *programs) load(r *guardRules, wait bool) (findings, error) {
	if _, err := p.look(); err != nil {
		return findings{}, err
	}
	var found findings
	for _, v6 := range p.families() {
		s := r.script(v6)
		for _, t := range tables() {
			if err := p.loadTable(v6, t, s, wait, &found); err != nil {
				return findings{}, err
			}
		}
	}
	return found, nil
}

func (p *programs) loadTable(v6 bool, t table, s *script, wait bool, found *findings) error {
	for range 3 {
		was, err := p.save(v6, t)
		if err != nil {
			return err
		}
		if err := p.restore(v6, s.restore(t, was), wait); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
		now, err := p.save(v6, t)
		if err != nil {
			return err
		}
		if now.holds(t, s) {
			found.take(t, now)
			return nil
		}
	}
	return fmt.Errorf("table %s of %s: %w", t.name, command(v6, ""), errMeddled)
}

// regrant exchanges the rules for grants. Where it fails for IPv6, those for IPv4 are new
// already: the daemon then asks for the old ones.
func (p *programs) regrant(r *guardRules, wait bool) error {
	for _, v6 := range p.families() {
		if err := p.restore(v6, r.script(v6).regrant(), wait); err != nil {
			return err
		}
	}
	return nil
}

// entered reports whether the rules that count new flows have counted any.
func (p *programs) entered() (bool, error) {
	for _, v6 := range p.families() {
		lines, err := p.ipt[v6].ListWithCounters("mangle", chainEnter)
		if err != nil {
			return false, err
		}
		for _, rule := range lines {
			if strings.Contains(rule, "--comment new") && !strings.Contains(rule, " -c 0 ") {
				return true, nil
			}
		}
	}
	return false, nil
}

// remove takes all of ours away, the jumps first of all.
func (p *programs) remove(wait bool) error {
	for _, v6 := range p.families() {
		for _, t := range tables() {
			s, err := p.save(v6, t)
			if err != nil {
				return err
			}
			if s.foreign() {
				return errForeignChain
			}
			if !s.present() {
				continue
			}
			if err := p.restore(v6, unload(t, s), wait); err != nil {
				return fmt.Errorf("table %s: %w", t.name, err)
			}
		}
	}
	return nil
}
