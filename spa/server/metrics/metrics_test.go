package metrics

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

func sampled() Sample {
	return Sample{
		Packets: []audit.Count{{Verdict: audit.Unopened, Reason: "wrong gate tag", Packets: 7},
			{Verdict: audit.Granted, Packets: 3}, {Verdict: audit.Closed}},
		Capture: Capture{Received: 12, Passed: 11, Dropped: 1, Ignored: map[string]uint64{"fragment": 1}},
		Live:    3, Grants: []string{"alice", "alice", "bob"},
		Clients: []string{"alice", "bob"}, LeftOut: 2, Floor: 90 * time.Second,
		Journal: Journal{Live: 5, Records: 6, Room: 100, Faults: 4}, Guard: Guard{InPlace: true, PutBack: 8}, Lost: 9,
	}
}

func decided(client string, v audit.Verdict, ahead time.Duration) audit.Event {
	now := time.Unix(1700000000, 0)
	return audit.Event{Time: now, From: netip.MustParseAddrPort("192.0.2.2:40000")}.Of(&spa.Knock{
		Client: &keys.Client{Name: client}, Key: keys.NewKey(), Request: spa.Request{Time: now.Add(ahead)}}).As(v, nil)
}

func textOf(t *testing.T, p *Page) string {
	t.Helper()
	text := lab.Value(p.text())(t)
	return string(text)
}

func want(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

func TestPage(t *testing.T) {
	p := newPage(Options{Version: "1.2", Start: time.Unix(1700000000, 0), Sample: sampled})
	p.Decided(decided("alice", audit.Granted, -200*time.Millisecond), 100*time.Microsecond)
	p.Decided(decided("bob", audit.Denied, 3*time.Second), time.Millisecond)
	p.Changed(30 * time.Microsecond)
	text := textOf(t, p)
	want(t, text,
		`spa_packets_total{reason="wrong gate tag",verdict="unopened"} 7`, `spa_packets_total{reason="",verdict="granted"} 3`,
		`spa_packets_total{reason="",verdict="closed"} 0`, `spa_capture_received_packets_total 12`,
		`spa_capture_passed_packets_total 11`, `spa_capture_dropped_packets_total 1`,
		`spa_capture_ignored_packets_total{reason="fragment"} 1`, `spa_grants 3`, `spa_clients 2`,
		`spa_client_files_ignored 2`, `spa_floor_seconds 90`, `spa_journal_nonces 5`, `spa_journal_used_slots 6`,
		`spa_journal_slots 100`, `spa_journal_faults_total 4`, `spa_journal_damaged 0`, `spa_guard_in_place 1`,
		`spa_keeper_alive 0`, `spa_guard_put_back_total 8`, `spa_audit_lost_lines_total 9`, `spa_audit_moved 0`,
		`spa_start_time_seconds 1.7e+09`,
		`spa_decision_duration_seconds_bucket{verdict="granted",le="8e-05"} 0`,
		`spa_decision_duration_seconds_bucket{verdict="granted",le="0.00016"} 1`,
		`spa_decision_duration_seconds_count{verdict="denied"} 1`, `spa_decision_duration_seconds_count{verdict="closed"} 0`,
		`spa_firewall_duration_seconds_count 1`,
		`spa_client_clock_offset_seconds_bucket{direction="behind",le="0.1"} 0`,
		`spa_client_clock_offset_seconds_bucket{direction="behind",le="0.25"} 1`,
		`spa_client_clock_offset_seconds_count{direction="ahead"} 1`)
	for _, name := range []string{"alice", "bob", "192.0.2.2"} {
		if strings.Contains(text, name) {
			t.Errorf("the page names %s, although clients are off", name)
		}
	}
}

// TestPrograms: the page has what became of programs, without the names of services.
func TestPrograms(t *testing.T) {
	s := sampled()
	s.Actions = &control.Actions{Waiting: 2, Failed: 1, Trouble: "gone", Counts: []control.Action{
		{Service: "a", Hook: "run", What: "started", Count: 3}, {Service: "b", Hook: "run", What: "started", Count: 4}}}
	text := textOf(t, newPage(Options{Sample: func() Sample { return s }}))
	want(t, text, `spa_programs_total{hook="run",result="started"} 7`, `spa_programs_waiting 2`,
		`spa_programs_total{hook="run_after",result="timed out"} 0`,
		`spa_programs_not_started 1`, `spa_program_runner_alive 0`)
}

// TestByClient: the page has exactly the clients that have files.
func TestByClient(t *testing.T) {
	p := newPage(Options{Clients: true, Sample: sampled})
	for _, client := range []string{"alice", "alice", "carol"} { // carol's file is gone
		p.Decided(decided(client, audit.Granted, 0), 0)
	}
	text := textOf(t, p)
	want(t, text, `spa_client_packets_total{client="alice",verdict="granted"} 2`,
		`spa_client_packets_total{client="alice",verdict="denied"} 0`, `spa_client_grants{client="alice"} 2`,
		`spa_client_grants{client="bob"} 1`)
	if strings.Contains(text, "carol") || len(p.byClient.of) != 1 {
		t.Errorf("a client without a file is still counted: %v\n%s", p.byClient.of, text)
	}
}

// TestNames: promtool finds no fault in names and help.
func TestNames(t *testing.T) {
	lab.NeedProgram(t, "promtool", "apt-get install prometheus")
	p := newPage(Options{Clients: true, Sample: sampled})
	p.Decided(decided("alice", audit.Granted, 0), 0)
	cmd := exec.Command("promtool", "check", "metrics")
	cmd.Stdin = bytes.NewReader([]byte(textOf(t, p)))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

// TestNothingAllocated: counting allocates nothing on the line.
func TestNothingAllocated(t *testing.T) {
	for _, clients := range []bool{false, true} {
		p := newPage(Options{Clients: clients, Sample: sampled})
		e := decided("alice", audit.Granted, time.Second)
		p.Decided(e, 0)
		if n := testing.AllocsPerRun(100, func() { p.Decided(e, time.Millisecond); p.Changed(time.Millisecond) }); n > 0 {
			t.Errorf("by client %v: %v allocations a packet", clients, n)
		}
	}
}

func BenchmarkDecided(b *testing.B) {
	for name, clients := range map[string]bool{"sums": false, "by-client": true} {
		b.Run(name, func(b *testing.B) {
			p := newPage(Options{Clients: clients, Sample: sampled})
			e := decided("alice", audit.Granted, time.Second)
			b.ReportAllocs()
			for b.Loop() {
				p.Decided(e, 100*time.Microsecond)
				p.Changed(30 * time.Microsecond)
			}
		})
	}
}

func BenchmarkPage(b *testing.B) {
	p := newPage(Options{Sample: sampled})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.text(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestSharedMetrics: a gateway that shares its address reports whether it takes part, and no other gateway does.
func TestSharedMetrics(t *testing.T) {
	s := sampled()
	s.Fleet = &control.Fleet{Serial: 3}
	page := func() string { return textOf(t, newPage(Options{Sample: func() Sample { return s }})) }
	if text := page(); strings.Contains(text, "spa_fleet_shared") || !strings.Contains(text, "spa_fleet_bundle_serial 3") {
		t.Errorf("a gateway alone reports\n%s", text)
	}
	s.Fleet.Shared = &control.Shared{Connected: true, Members: []string{"lb1", "lb2"}, Waiting: 4,
		Counts: map[string]uint64{"won": 5}}
	want(t, page(), "spa_fleet_shared_joined 0", "spa_fleet_shared_agent_connected 1", "spa_fleet_shared_members 2",
		"spa_fleet_shared_waiting 4", `spa_fleet_shared_total{what="won"} 5`)
	s.Fleet.Shared.Joined = true
	want(t, page(), "spa_fleet_shared_joined 1")
}
