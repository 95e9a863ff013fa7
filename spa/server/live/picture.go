package live

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"sallyport/keys/quote"
	"sallyport/spa/server/control"
)

// Styles, as ECMA-48 escape sequences.
const (
	bold  = "\x1b[1m"
	dim   = "\x1b[2m"
	red   = "\x1b[1;31m"
	green = "\x1b[32m"
	amber = "\x1b[33m"
	plain = "\x1b[0m"
)

// The lists, in order of their place on the screen.
const (
	grants = iota
	decisions
	clients
)

// list is a scrolled table.
type list struct {
	title string
	top   int // first row that is shown
	rows  int // shown, when it was drawn last
}

// narrow is the width below which columns are not aligned.
const narrow = 60

// picture is what is known, and how much of it is on the screen.
type picture struct {
	line          func(control.Decision) string
	colours       bool
	width, height int
	now           time.Time

	last     asked  // the last answer with a status
	trouble  error  // why the server does not answer now
	rates    rates  // of verdicts
	told     []told // the latest first
	lists    [3]list
	focus    int
	clockGap time.Duration // the server's clock less ours
}

func newPicture(line func(control.Decision) string, colours bool) *picture {
	return &picture{line: line, colours: colours, width: 80, height: 24, now: time.Now(),
		lists: [3]list{{title: "OPEN NOW"}, {title: "DECISIONS"}, {title: "CLIENTS"}}}
}

func (p *picture) answered(a asked) {
	p.trouble = a.err
	if a.status == nil {
		if a.err == nil {
			p.trouble = errors.New("the server answered without a status")
		}
		return
	}
	p.rates.add(a)
	p.last, p.now = a, a.at
	p.clockGap = a.status.Now.Sub(a.at)
	slices.SortStableFunc(p.last.grants, func(a, b control.Grant) int { return a.Until.Compare(b.Until) })
	slices.SortStableFunc(p.last.status.Seen, func(a, b control.Seen) int {
		return cmp.Compare(math.Abs(off(b)), math.Abs(off(a)))
	})
}

// off returns how far a client's clock is off, in seconds; larger than any clock if its packets are refused for it.
func off(c control.Seen) float64 {
	if c.Stale != nil {
		return 1e12 + math.Abs(c.Stale.Ahead)
	}
	return c.Ahead
}

func (p *picture) decided(t told) {
	p.told = slices.Insert(p.told, 0, t)
	p.told = p.told[:min(len(p.told), kept)]
	if p.lists[decisions].top > 0 {
		p.lists[decisions].top++ // what is being read stays where it is
	}
}

// serverTime is the time by the server's clock.
func (p *picture) serverTime() time.Time { return p.now.Add(p.clockGap) }

// style colours a text.
func (p *picture) style(style, text string) string {
	if !p.colours || text == "" {
		return text
	}
	return style + text + plain
}

// fit makes a text printable and cuts it to a width.
func fit(text string, width int) string {
	return ansi.Truncate(quote.Printable(text), max(0, width), "…")
}

// draw returns the screen: the head, the lists, and the keys at the bottom.
func (p *picture) draw() string {
	lines := p.head()
	room := p.height - len(lines) - 1
	for i, rows := range p.share(room) {
		if rows > 0 {
			lines = append(lines, p.drawList(i, rows)...)
		}
	}
	if len(lines) > p.height-1 {
		lines = lines[:max(0, p.height-1)]
	}
	for len(lines) < p.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, p.style(dim, fit("q quit  ↑ ↓ scroll  tab next list", p.width)))
	return strings.Join(lines, "\n")
}

// head returns the lines about the server.
func (p *picture) head() []string {
	s := p.last.status
	if s == nil {
		if p.trouble != nil {
			return []string{p.style(red, fit(p.trouble.Error(), p.width))}
		}
		return []string{fit("asking spa-server …", p.width)}
	}
	clock := p.serverTime().Local().Format(time.TimeOnly)
	name := fit(fmt.Sprintf("%s at %s, version %s, up %s", s.Name, s.Address, s.Version,
		span(p.serverTime().Sub(s.Since))), p.width-len(clock)-1)
	gap := strings.Repeat(" ", max(1, p.width-ansi.StringWidth(name)-len(clock)))
	lines := []string{p.style(bold, name) + gap + fit(clock, p.width)}
	guard, style := "guard in place", green
	switch f := s.Firewall; {
	case f.Backend == "dry-run":
		guard, style = "dry run: shuts and opens nothing", amber
	case f.Missing:
		guard, style = "GUARD MISSING: guarded ports may be open", red
	case !f.Trial.IsZero():
		guard, style = "guard on trial until "+f.Trial.Local().Format(time.TimeOnly), amber
	case f.Mode == "admit":
		guard = "your own table guards"
	}
	lines = append(lines, p.style(style, fit(fmt.Sprintf("%s; grants: %d, clients: %d", guard, s.Grants, s.Clients),
		p.width)))
	lines = append(lines, fit(p.rates.line(), p.width))
	for _, w := range warnings(s, p.trouble) {
		lines = append(lines, p.style(red, fit(w, p.width)))
	}
	return append(lines, "")
}

// warnings returns what the administrator must look at.
func warnings(s *control.Status, trouble error) []string {
	var out []string
	if trouble != nil {
		out = append(out, "no answer: "+trouble.Error())
	}
	if s.Floor != nil {
		out = append(out, fmt.Sprintf("refuses knocks until %s: %s", s.Floor.Until.Local().Format(time.TimeOnly),
			s.Floor.Reason))
	}
	if s.Firewall.Unkept {
		out = append(out, "the guard's keeper has ended: systemctl restart spa-server starts a new one")
	}
	if n := len(s.LeftOut); n > 0 {
		out = append(out, fmt.Sprintf("client files ignored: %d, such as that of %s: %s", n, s.LeftOut[0].Client,
			s.LeftOut[0].Why))
	}
	if s.Audit.Moved != "" {
		out = append(out, "the audit log was moved away: "+s.Audit.Moved)
	}
	if s.Audit.Lost > 0 {
		out = append(out, fmt.Sprintf("audit lines lost: %d: %s", s.Audit.Lost, s.Audit.LostWhy))
	}
	return out
}

// share divides the lines of the screen among the lists, a title included. If there is little room, only the list with
// the focus is drawn.
func (p *picture) share(room int) [3]int {
	if room < 9 {
		var one [3]int
		one[p.focus] = room
		return one
	}
	of := [3]int{len(p.last.grants) + 2, len(p.told) + 2, 2}
	if s := p.last.status; s != nil {
		of[clients] += len(s.Seen)
	}
	of[clients] = min(of[clients], max(4, room/4))
	of[grants] = min(of[grants], max(3, room/2))
	of[decisions] = room - of[grants] - of[clients]
	return of
}

// drawList returns a list's title and rows, exactly as many lines as it has room.
func (p *picture) drawList(which, lines int) []string {
	l, count := &p.lists[which], p.count(which)
	l.rows = max(0, lines-2)
	l.top = max(0, min(l.top, count-l.rows))
	title := l.title
	if count > l.rows {
		title = fmt.Sprintf("%s  %d to %d of %d", title, min(l.top+1, count), min(l.top+l.rows, count), count)
	}
	style := dim
	if which == p.focus {
		style = bold
	}
	out := []string{p.style(style, fit(title, p.width))}
	for i := l.top; i < min(count, l.top+l.rows); i++ {
		out = append(out, p.row(which, i))
	}
	for len(out) < lines {
		out = append(out, "")
	}
	return out[:lines]
}

func (p *picture) count(which int) int {
	switch {
	case which == decisions:
		return len(p.told)
	case p.last.status == nil:
		return 0
	case which == grants:
		return len(p.last.grants)
	}
	return len(p.last.status.Seen)
}

func (p *picture) row(which, i int) string {
	switch which {
	case grants:
		return p.grant(p.last.grants[i])
	case decisions:
		return p.decision(p.told[i])
	}
	return p.client(p.last.status.Seen[i])
}

func (p *picture) grant(g control.Grant) string {
	left := g.Until.Sub(p.serverTime())
	form := "%8s  %-14s %-12s %-18s %s"
	if p.width < narrow {
		form = "%s %s %s %s %s"
	}
	text := fit(fmt.Sprintf(form, span(left), g.Client, g.Service, g.Whom(), strings.Join(g.Ports, ",")), p.width)
	if left < 10*time.Second {
		return p.style(amber, text)
	}
	return text
}

func (p *picture) decision(t told) string {
	if t.decision == nil {
		return p.style(amber, fit(fmt.Sprintf("%d decisions were not shown", t.missed), p.width))
	}
	text := fit(p.line(*t.decision), p.width)
	switch t.decision.Verdict {
	case "granted":
		return p.style(green, text)
	case "denied", "failed", "revoked":
		return p.style(red, text)
	case "unopened", "elsewhere", "unspent":
		return p.style(amber, text)
	}
	return text
}

func (p *picture) client(c control.Seen) string {
	var parts []string
	if c.Stale != nil {
		parts = append(parts, fmt.Sprintf("%d packets refused as stale, %s", c.Stale.Packets, clock(c.Stale.Ahead)))
	}
	if !c.Last.IsZero() {
		parts = append(parts, clock(c.Ahead), fmt.Sprintf("%s ago from %s", span(p.serverTime().Sub(c.Last)), c.From))
	}
	if c.OldKey {
		parts = append(parts, "old key")
	}
	if c.OldGate {
		parts = append(parts, "old gate key")
	}
	form := "%-14s %s"
	if p.width < narrow {
		form = "%s %s"
	}
	text := fit(fmt.Sprintf(form, c.Client, strings.Join(parts, ", ")), p.width)
	if c.Stale != nil || c.OldKey || c.OldGate || math.Abs(c.Ahead) > 5 {
		return p.style(amber, text)
	}
	return text
}

// clock describes a client's clock.
func clock(ahead float64) string {
	if math.Abs(ahead) < 0.05 {
		return "clock right"
	}
	return fmt.Sprintf("clock %+.1f s", ahead)
}

// span formats a duration in its two largest units.
func span(d time.Duration) string {
	s := int64(max(0, d) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}
