package config

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// The window is at least a second, because packets take time and synchronised clocks still differ. It is at most ten
// minutes: a packet that was held back works for that long, and the journal must remember as much.
const maxWindow = 10 * time.Minute

// line reads the settings that decide about a packet before the policy does.
func (l *loader) line() {
	l.cfg.Window = l.duration("window", l.raw.Window)
	if l.cfg.Window > maxWindow {
		l.must("window", fmt.Errorf("must be at most %s: a packet that was held back stays good for this long",
			service.FormatDuration(maxWindow)))
	}
	l.cfg.Receipts = l.raw.Receipts
	l.cfg.Capture = Capture{Mode: l.raw.Capture.Mode, Interfaces: none(l.raw.Capture.Interfaces),
		Browser: l.raw.Capture.Browser, Gate: l.raw.Capture.Gate}
	l.oneOf("capture.mode", l.cfg.Capture.Mode, "sniff", "udp")
	if l.cfg.Capture.Browser && !l.cfg.Receipts {
		l.must("capture.browser", errors.New("needs receipts = true: a page has no other way to "+
			"learn whether the port is open"))
	}
	if l.cfg.Bound() && slices.ContainsFunc(l.cfg.KnockPorts, func(k KnockPort) bool { return k.Shared }) {
		l.must("capture.mode", errors.New("a shared knock port belongs to another program: the server cannot bind it"))
	}
	l.oneOf("capture.gate", l.cfg.Capture.Gate, "auto", "xdp", "socket", "none")
	l.interfaces("capture.interfaces", l.cfg.Capture.Interfaces)
}

func (l *loader) duration(key, text string) time.Duration {
	d, err := service.ParseDuration(text)
	l.must(key, err)
	return d
}

func (l *loader) oneOf(key, value string, accepted ...string) {
	if slices.Contains(accepted, value) {
		return
	}
	quoted := make([]string, len(accepted))
	for i, a := range accepted {
		quoted[i] = strconv.Quote(a)
	}
	p := l.doc.Problem(key, "should be %s", strings.Join(quoted, " or "))
	p.Suggestion = strict.Nearest(value, accepted)
	l.problems = append(l.problems, p)
}

func (l *loader) interfaces(key string, names []string) {
	for i, name := range names {
		if err := service.ValidInterface(name); err != nil {
			l.must(key, fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		if slices.Contains(names[:i], name) {
			l.must(key, fmt.Errorf("entry %d is listed twice", i+1))
		}
	}
}

func (l *loader) files() {
	l.cfg.State = l.path("state", l.cfg.Dir, l.raw.State)
	if l.raw.Audit.File == auditJournal { // and not the file of that name, which holds the used packets
		l.cfg.Audit = Audit{Journal: true}
		return
	}
	l.cfg.Audit.File = l.path("audit.file", l.cfg.State, l.raw.Audit.File)
}

// path reads a path, relative to dir unless it is absolute.
func (l *loader) path(key, dir, path string) string {
	if path == "" || strings.ContainsRune(path, 0) {
		l.must(key, errors.New("should be a path"))
	}
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(dir, path)
}

// The upper limits keep one client from filling the journal and the grant table.
func (l *loader) limits() {
	raw := l.raw.Limits
	l.cfg.Limits = Limits{
		LiveNonces:    l.limit("limits.live_nonces", raw.LiveNonces, 4096),
		Grants:        l.limit("limits.grants", raw.Grants, 4096),
		GrantsPerHour: l.limit("limits.grants_per_hour", raw.GrantsPerHour, 10_000_000),
	}
}

func (l *loader) limit(key string, n, most int64) int {
	if n < 1 || n > most {
		l.must(key, fmt.Errorf("should be 1 to %d", most))
	}
	return int(n)
}

func (l *loader) service(name string, raw rawService) {
	key := "service." + name
	if err := service.ValidName(name); err != nil {
		l.must(key, err)
		return
	}
	s := Service{Name: name, Action: l.action(key, raw), Addresses: l.addresses(key+".addresses", raw.Addresses)}
	if len(raw.Ports) > 0 || !s.Action.Any() {
		s.Ports = l.ports(key+".ports", raw.Ports)
	} else {
		l.withoutPorts(key)
	}
	l.forward(key, raw, &s)
	s.For, s.MaxFor = l.times(key, raw)
	s.When = l.when(key+".when", raw.When)
	s.OnExpiry = keepSessions
	if raw.OnExpiry != nil {
		s.OnExpiry = *raw.OnExpiry
		l.oneOf(key+".on_expiry", s.OnExpiry, keepSessions, cutSessions)
	}
	s.Once = raw.Once
	l.once(key, s)
	l.cfg.Services = append(l.cfg.Services, s)
	if len(l.cfg.Services) == keys.MaxServices+1 {
		l.must(key, fmt.Errorf("a gateway has at most %d services", keys.MaxServices))
	}
}

// times reads for and max_for. A default never contradicts the file.
func (l *loader) times(key string, raw rawService) (span, most time.Duration) {
	span, most = defaultFor, defaultMaxFor
	if raw.For != nil {
		span = l.duration(key+".for", *raw.For)
		most = max(most, span)
	}
	if raw.MaxFor != nil {
		most = l.duration(key+".max_for", *raw.MaxFor)
	}
	if raw.For == nil {
		span = min(span, most)
	}
	if span > most && most > 0 {
		l.must(key+".for", errors.New("must not be longer than max_for"))
	}
	return span, most
}

func (l *loader) ports(key string, texts []string) []service.Ports {
	if len(texts) == 0 || len(texts) > keys.MaxServicePorts {
		l.must(key, fmt.Errorf(`should be 1 to %d ports or ranges: ["tcp/22"]`, keys.MaxServicePorts))
		return nil
	}
	var list []service.Ports
	for _, text := range texts {
		p, err := service.ParsePorts(text)
		if err != nil {
			l.must(key, err)
			continue
		}
		if i := slices.IndexFunc(list, func(o service.Ports) bool { return overlap(o, p) }); i >= 0 {
			l.must(key, fmt.Errorf("%s and %s overlap", list[i], p))
		}
		list = append(list, p)
	}
	if n := count(list); n > maxServicePorts {
		l.must(key, fmt.Errorf("has %d ports; a service has at most %d, because each takes an entry in the "+
			"kernel's table for every address", n, maxServicePorts))
	}
	return list
}

// maxServicePorts is how many ports a service may have. One client's grants must leave room for others'.
const maxServicePorts = 1024

func count(list []service.Ports) int {
	n := 0
	for _, p := range list {
		n += int(p.High) - int(p.Low) + 1
	}
	return n
}

func overlap(a, b service.Ports) bool {
	return a.Proto == b.Proto && a.Low <= b.High && b.Low <= a.High
}

func (l *loader) addresses(key string, texts []string) []netip.Addr {
	var list []netip.Addr
	for i, text := range texts {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified():
			l.must(key, fmt.Errorf("entry %d is not an address: names and networks are not allowed", i+1))
		case a.IsMulticast():
			l.must(key, fmt.Errorf("entry %d is a multicast address: a service is on one machine", i+1))
		case a.IsLinkLocalUnicast():
			l.must(key, fmt.Errorf("entry %d is link-local: it may be a different machine on each link", i+1))
		case slices.Contains(list, a):
			l.must(key, fmt.Errorf("entry %d is listed twice", i+1))
		}
		list = append(list, a)
	}
	return list
}
