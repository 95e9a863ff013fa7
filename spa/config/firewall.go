package config

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"sallyport/keys/service"
)

func (l *loader) firewall() {
	f := l.raw.Firewall
	l.oneOf("firewall.backend", f.Backend, "auto", "nftables", "iptables", "dry-run")
	l.oneOf("firewall.mode", f.Mode, "guard", "admit")
	l.oneOf("firewall.closed", f.Closed, "drop", "reject")
	l.oneOf("firewall.persist", f.Persist, "owner", "file")
	l.interfaces("firewall.trusted_interfaces", f.TrustedInterfaces)
	l.cfg.Firewall = Firewall{Backend: f.Backend, Mode: f.Mode, Closed: f.Closed, Persist: f.Persist,
		TrustedInterfaces: none(f.TrustedInterfaces), TPROXY: f.TPROXY}
	if f.Persist == "file" && f.Backend == "iptables" {
		l.must("firewall.persist", errors.New(`"file" has an effect only with nftables, whose tables can have an owner`))
	}
	if f.Closed == "reject" && f.Backend == "iptables" {
		l.must("firewall.closed",
			errors.New(`"reject" works only with nftables: iptables can only drop where its guard is`))
	}
	l.mark()
	l.admit()
}

func (l *loader) mark() {
	mark := l.raw.Firewall.Mark
	if mark == nil {
		return
	}
	if *mark < 1 || *mark > 1<<31 || bits.OnesCount64(uint64(*mark)) != 1 {
		l.must("firewall.mark", errors.New("should be one bit of 32, such as 0x20000000"))
		return
	}
	l.cfg.Firewall.Mark = uint32(*mark)
}

// admit reads the sets of mode "admit". It refuses settings that only matter for a guard: someone would rely on them.
func (l *loader) admit() {
	raw := l.raw.Firewall.Admit
	if l.cfg.Firewall.Mode != "admit" {
		for _, key := range []string{"table", "set4", "set6"} {
			if key = "firewall.admit." + key; l.doc.Has(key) {
				l.must(key, errors.New(`has an effect only with firewall.mode = "admit"`))
			}
		}
		return
	}
	family, table, ok := strings.Cut(raw.Table, " ")
	if !ok || !slices.Contains([]string{"inet", "ip", "ip6"}, family) || service.ValidTable(table) != nil {
		l.must("firewall.admit.table", errors.New(`should be the family and the name of your own table: "inet filter"`))
	}
	l.cfg.Firewall.Admit = Admit{Family: family, Table: table, Set4: raw.Set4, Set6: raw.Set6}
	l.admitSet("set4", raw.Set4, family == "ip6")
	l.admitSet("set6", raw.Set6, family == "ip")
	if raw.Set4 == "" && raw.Set6 == "" {
		l.must("firewall.admit", errors.New(`should name a set of that table: set4 = "spa4", set6 = "spa6", or one of them`))
	}
	l.onlyGuarding()
}

func (l *loader) admitSet(key, name string, otherFamily bool) {
	key = "firewall.admit." + key
	switch {
	case !l.doc.Has(key):
	case service.ValidTable(name) != nil:
		l.must(key, errors.New("should be the name of a set in that table"))
	case otherFamily:
		l.must(key, errors.New("is for addresses that never reach a table of that family"))
	}
}

var errGuardOnly = errors.New(`has no effect with firewall.mode = "admit": your own table keeps the ports shut`)

// onlyGuarding refuses settings for a guard if there is none of ours.
func (l *loader) onlyGuarding() {
	f := l.cfg.Firewall
	for key, set := range map[string]bool{
		"firewall.closed":             f.Closed != "drop",
		"firewall.persist":            f.Persist != "owner",
		"firewall.trusted_interfaces": len(f.TrustedInterfaces) > 0,
		"firewall.tproxy":             f.TPROXY,
		"firewall.mark":               f.Mark != 0,
	} {
		if set {
			l.must(key, errGuardOnly)
		}
	}
	if f.Backend == "iptables" {
		l.must("firewall.mode", errors.New(`"admit" works with nftables sets, not with firewall.backend = "iptables"`))
	}
}

// collisions refuses contradictions. A guarded port cannot be a knock port of its own: knock ports are exempt from
// connection tracking, so the guard could not recognise a session. And the sessions of a port either end with the
// grant or do not.
func (l *loader) collisions() {
	for i, s := range l.cfg.Services {
		l.forwardCollisions(&s)
		if l.cfg.Firewall.Mode == "admit" && len(s.Addresses) > 0 {
			l.must("service."+s.Name+".addresses", errGuardOnly)
		}
		for _, k := range l.cfg.KnockPorts {
			if !k.Shared && service.Covers(s.Ports, service.UDP, k.Port) {
				l.must("service."+s.Name+".ports", fmt.Errorf("udp/%d is a knock port: choose another, or { port = %[1]d, shared "+
					"= true } in knock_ports", k.Port))
			}
		}
		for _, other := range l.cfg.Services[:i] {
			if s.OnExpiry != other.OnExpiry && anyOverlap(s.Ports, other.Ports) {
				l.must("service."+s.Name+".on_expiry", fmt.Errorf("%s guards the same port and says %q: a port has one answer",
					other.Name, other.OnExpiry))
			}
			if s.Once != other.Once && anyOverlap(s.Ports, other.Ports) {
				l.must("service."+s.Name+".once", fmt.Errorf("%s guards the same port and says %v: a port has one answer",
					other.Name, other.Once))
			}
		}
	}
}

func anyOverlap(a, b []service.Ports) bool {
	return slices.ContainsFunc(a, func(p service.Ports) bool {
		return slices.ContainsFunc(b, func(q service.Ports) bool { return overlap(p, q) })
	})
}
