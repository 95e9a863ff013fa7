package live

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"sallyport/keys/quote"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

var update = flag.Bool("update", false, "write the golden files again")

var began = time.Date(2026, 3, 1, 14, 3, 7, 0, time.Local)

// example is a picture of a busy gateway.
func example() *picture {
	p := newPicture(func(d control.Decision) string {
		return fmt.Sprintf("%s %s %s from %s", d.Time.Format(time.TimeOnly), d.Verdict, d.Client, d.From)
	}, false)
	alice, bob := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::17")
	status := func(at time.Time, granted, noise uint64) *control.Status {
		return &control.Status{Name: "gw", Address: "gw.example.net", Version: "v1.2.3", Now: at,
			Since: began.Add(-76 * time.Hour), Clients: 12, Grants: 2,
			Decided: map[string]uint64{"granted": granted, "denied: not allowed": 3, "unopened: not for this server": noise},
			Capture: control.Capture{KernelDrops: 0},
			Seen: []control.Seen{
				{Client: "alice", Last: at.Add(-7 * time.Second), From: alice},
				{Client: "bob", Last: at.Add(-65 * time.Second), From: bob, Ahead: -1.4, OldKey: true},
				{Client: "carol", Stale: &control.Stale{Packets: 4, Last: at, From: alice, Ahead: 94}},
			},
			LeftOut: []control.LeftOut{{Client: "dave", Why: "clients/dave.toml:3: unknown key alow"}}}
	}
	open := []control.Grant{
		{Client: "bob", Service: "web", Source: bob, Ports: []string{"tcp/80", "tcp/443"},
			Until: began.Add(90 * time.Second)},
		{Client: "alice", Service: "ssh", Source: alice, Ports: []string{"tcp/22"}, Until: began.Add(6 * time.Second)},
	}
	p.answered(asked{at: began.Add(-2 * time.Second), status: status(began.Add(-2*time.Second), 100, 1000)})
	p.answered(asked{at: began, status: status(began, 103, 25000), grants: open})
	from := netip.AddrPortFrom(alice, 40001)
	for _, d := range []control.Decision{
		{Time: began.Add(-60 * time.Second), Verdict: "granted", Client: "bob", From: netip.AddrPortFrom(bob, 40002)},
		{Time: began.Add(-30 * time.Second), Verdict: "denied", Client: "erin", From: from},
		{Time: began.Add(-24 * time.Second), Verdict: "granted", Client: "alice", From: from},
	} {
		p.decided(told{decision: &d})
	}
	p.decided(told{missed: 12})
	return p
}

// TestScreens keeps screens as text, so that they can be looked at. After a change that is meant: go test
// ./spa/server/live -run Screens -update.
func TestScreens(t *testing.T) {
	for _, size := range [][2]int{{20, 14}, {80, 24}, {140, 24}} {
		p := example()
		p.Update(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		var b strings.Builder
		for line := range strings.Lines(p.draw() + "\n") {
			b.WriteString(strings.TrimRight(line, " \n") + "\n")
		}
		path := filepath.Join("testdata", fmt.Sprintf("screen-%d.txt", size[0]))
		if *update {
			lab.Must(t, os.WriteFile(path, []byte(b.String()), 0o644))
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil || string(want) != b.String() {
			t.Errorf("%v: the screen has changed:\n%s", err, b.String())
		}
	}
}

// TestFits: whatever the server sends, keys are pressed and the size is, a screen has exactly its lines, none is too
// wide, and only colours are sent to the terminal beside printable text.
func TestFits(t *testing.T) {
	const hostile = "a\x1b[2J\r\t\u202eb\u2028\u009b\u200b\x7f世界\n"
	r := rand.New(rand.NewPCG(1, 2))
	keys := []tea.KeyPressMsg{{Code: tea.KeyTab}, {Code: tea.KeyDown}, {Code: tea.KeyUp}, {Code: tea.KeyPgDown},
		{Code: tea.KeyPgUp}, {Code: tea.KeyEnd}, {Code: tea.KeyHome}}
	for round := range 3000 {
		p := newPicture(func(d control.Decision) string { return d.Verdict + d.Client }, round%2 == 0)
		for range r.IntN(30) {
			switch r.IntN(5) {
			case 0:
				var s control.Status
				lab.Fill(&s, hostile)
				s.Firewall.Missing, s.Firewall.Unkept, s.Audit.Lost = r.IntN(2) == 0, r.IntN(2) == 0, r.Uint64()
				s.Decided = map[string]uint64{"granted": r.Uint64(), "unopened: x": r.Uint64()}
				open := make([]control.Grant, r.IntN(40))
				lab.Fill(&open, hostile)
				p.Update(asked{at: time.Now(), status: &s, grants: open})
			case 1:
				var d control.Decision
				lab.Fill(&d, hostile)
				p.Update(told{decision: &d})
			case 2:
				p.Update(told{missed: r.Uint64()})
			case 3:
				p.Update(keys[r.IntN(len(keys))])
			case 4:
				p.Update(asked{at: time.Now(), err: &control.Denied{Text: hostile}})
			}
		}
		p.Update(tea.WindowSizeMsg{Width: r.IntN(100), Height: r.IntN(40)})
		screen := p.View().Content
		lines := strings.Split(screen, "\n")
		if len(lines) > max(1, p.height) {
			t.Fatalf("%d lines on a screen of %d", len(lines), p.height)
		}
		for _, line := range lines {
			text := line
			for _, style := range []string{bold, dim, red, green, amber, plain} {
				text = strings.ReplaceAll(text, style, "")
			}
			if quote.Printable(text) != text || p.width > 8 && ansi.StringWidth(text) > p.width {
				t.Fatalf("%q on a screen %d columns wide", line, p.width)
			}
		}
		if round%2 == 1 && strings.Contains(screen, "\x1b") {
			t.Fatalf("colours where none are wanted: %q", screen)
		}
	}
}

// TestScrolls: each row of a long list can be seen, and what is being read stays where it is.
func TestScrolls(t *testing.T) {
	p := example()
	p.Update(tea.WindowSizeMsg{Width: 80, Height: 24})
	p.key("tab")
	for i := range 100 {
		p.decided(told{decision: &control.Decision{Verdict: fmt.Sprintf("number-%d-", i)}})
	}
	seen := make(map[string]bool)
	for range 200 {
		for line := range strings.Lines(p.draw()) {
			seen[strings.TrimSpace(line)] = true
		}
		p.key("down")
	}
	for i := range 100 {
		if want := fmt.Sprintf("number-%d-", i); !strings.Contains(fmt.Sprint(seen), want) {
			t.Errorf("%s cannot be seen", want)
		}
	}
	p.key("home")
	p.key("pgdown")
	before := p.draw()
	p.decided(told{decision: &control.Decision{Verdict: "another"}})
	if after := p.draw(); strings.Split(after, "\n")[12] != strings.Split(before, "\n")[12] {
		t.Errorf("the list moved while it was read:\n%s\n%s", before, after)
	}
}
