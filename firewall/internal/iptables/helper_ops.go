package iptables

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// errMeddled is returned when another tool changed our chains while they were loaded.
var errMeddled = errors.New("another tool changed the chains while they were loaded")

// tablesOf returns the current contents of our tables of a family. Foreign chains are errForeignChain.
func (p *Programs) tablesOf(v6 bool) (was [3]*saved, err error) {
	for i, t := range Tables() {
		if t.name == natTable && !p.nat {
			was[i] = ParseSaved(t, "")
			continue
		}
		if was[i], err = p.save(v6, t); err != nil {
			return was, err
		}
		if was[i].foreign() {
			return was, errForeignChain
		}
	}
	return was, nil
}

// look describes the guard as it is.
func (p *Programs) look() (findings, error) {
	var found findings
	for _, v6 := range p.families() {
		now, err := p.tablesOf(v6)
		if err != nil {
			return findings{}, err
		}
		found.add(now)
	}
	return found, nil
}

// add adds the findings of one family.
func (f *findings) add(now [3]*saved) {
	for i, t := range Tables() {
		s := now[i]
		f.Present = f.Present || s.present()
		f.Digest += s.digest(t)
	}
}

// load loads the guard and checks that it is there. It detects foreign chains before it changes anything. At a start
// (wait) a guard that fails to load completely is removed again.
func (p *Programs) load(r *GuardRules, wait bool) (findings, error) {
	r.quotes, r.handed, r.bridged = p.quotes, p.handed, bridged()
	p.nat = p.nat || len(r.Forwards) > 0
	was := make(map[bool][3]*saved)
	for _, v6 := range p.families() {
		var err error
		if was[v6], err = p.tablesOf(v6); err != nil {
			return findings{}, err
		}
	}
	found, err := p.loadAll(r, was, wait)
	if err == nil {
		p.nat = len(r.Forwards) > 0
	}
	if err != nil && wait && nothing(was) {
		// A partial guard without a daemon would shut everybody out.
		err = errors.Join(err, p.remove(wait))
	}
	return found, err
}

// bridged reports whether bridged packets pass through the guard. A rule that matches them would cause that itself
// (xt_physdev loads br_netfilter).
func bridged() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

// nothing reports whether none of our chains and jumps were there.
func nothing(was map[bool][3]*saved) bool {
	for _, tables := range was {
		if slices.ContainsFunc(tables[:], (*saved).present) {
			return false
		}
	}
	return true
}

func (p *Programs) loadAll(r *GuardRules, was map[bool][3]*saved, wait bool) (findings, error) {
	var found findings
	for _, v6 := range p.families() {
		before, err := p.shut(v6, r, was[v6], wait)
		if err != nil {
			return findings{}, err
		}
		now, err := p.loadFamily(v6, r.script(v6), before, wait)
		if err != nil {
			return findings{}, err
		}
		found.add(now)
	}
	return found, nil
}

// shut loads the guard without connection tracking if the guard is incomplete: see Bare.
func (p *Programs) shut(v6 bool, r *GuardRules, was [3]*saved, wait bool) ([3]*saved, error) {
	const mangle = 1
	t := Tables()[mangle]
	if was[mangle].jumpsFirst(t) && len(was[mangle].Chains[chainDoor]) > 0 && len(was[mangle].Chains[chainRevive]) > 0 {
		return was, nil
	}
	if err := p.restore(v6, r.Bare(v6).Restore(t, was[mangle]), wait); err != nil {
		return was, fmt.Errorf("loading the guard: %w", err)
	}
	return p.tablesOf(v6)
}

// loadFamily retries if another tool interfered: a jump that it should replace may be gone. It also retries once if
// the program was killed: each table changes in one transaction, so it is in its old or its new state, and the
// next attempt starts from what is there.
func (p *Programs) loadFamily(v6 bool, s *script, was [3]*saved, wait bool) (now [3]*saved, err error) {
	hung := false
	for range 3 {
		rules := ""
		for i, t := range Tables() {
			rules += s.change(t, was[i])
		}
		failed := p.restore(v6, rules, wait)
		if now, err = p.tablesOf(v6); err != nil {
			return now, err
		}
		if failed == nil && s.stands(now) {
			return now, nil
		}
		err = failed
		if failed == nil {
			err = errMeddled
		}
		if _, ended := errors.AsType[*endedError](err); ended && !hung {
			fmt.Fprintf(os.Stderr, "%s: %v; running it again\n", HelperName, err)
			hung, was = true, now
			continue
		}
		if trouble, program := errors.AsType[*programError](err); failed != nil && (!program || trouble.busy()) {
			return now, err
		}
		was = now
	}
	return now, s.r.explainForward(fmt.Errorf("loading the guard: %w", err))
}

// entered reports whether the rules that count new flows have counted any.
func (p *Programs) entered() (bool, error) {
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

// remove removes everything of ours, the jumps first.
func (p *Programs) remove(wait bool) error {
	for _, v6 := range p.families() {
		for _, t := range Tables() {
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
