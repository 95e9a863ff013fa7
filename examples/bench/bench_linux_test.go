package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestTinyRound measures Sallyport alone, a few times each.
func TestTinyRound(t *testing.T) {
	lab.NeedNamespaces(t)
	tiny := sizes{devices: 1, opens: 2, connects: 1, delays: []time.Duration{ms}, rates: []int{1000, 0},
		knocks: 2, most: 3, clients: []int{1, 20}, cost: 2, crowd: 5, sustain: 100 * ms, idle: 10 * ms}
	out := t.TempDir()
	var log bytes.Buffer
	err := run(context.Background(), options{out: out, repo: "../..", sizes: tiny,
		only: []string{"idle", "open", "connect", "noise", "cost", "grants"}}, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	table := string(lab.Value(os.ReadFile(filepath.Join(out, "results.md")))(t))
	for _, want := range []string{
		"| | no firewall | Sallyport |",
		"accepts: knocks that open; p50 / p90 / p99, ms | 2 of 2; ",
		"full speed: knocks that open; p50 / p90 / p99, ms | - | 3 of 3; ",
		"copies of a knock, 1000/s: knocks that open; p50 / p90 / p99, ms | - | 2 of 2; ",
		"connect with 1ms each way",
		"knock with clients: 20: ",
		"grants per second from 5 clients",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	for _, name := range []string{"connect.png", "noise.png", "clients.png"} {
		file := lab.Value(os.Open(filepath.Join(out, name)))(t)
		_, err := png.Decode(file)
		lab.Must(t, errors.Join(err, file.Close()))
	}
}

// TestTinyFleet measures a fleet of two gateways.
func TestTinyFleet(t *testing.T) {
	lab.NeedRoot(t)
	lab.NeedNamespaces(t)
	lab.NeedProgram(t, "etcd", "apt-get install etcd-server")
	out := t.TempDir()
	var log bytes.Buffer
	err := runFleet(context.Background(), options{out: out, repo: "../..",
		fleetSizes: fleetSizes{gateways: 2, clients: 10, rounds: 1}}, &log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	table := string(lab.Value(os.ReadFile(filepath.Join(out, "fleet.md")))(t))
	for _, want := range []string{
		"| | directory, read every second | etcd |",
		"etcd Version: ",
		"2 gateways at once: end of publish until refused, s | ",
		"one gateway, other agents stopped: bundle in place until refused, s; ",
		"a bundle with 10 clients, bytes; ",
		"after 2 publishes this way: memory ",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	every := regexp.MustCompile(`2 gateways at once: start of publish until refused, s \| [^|]+ of 2 \| [^|]+ of 2 \|`)
	if !every.MatchString(table) {
		t.Errorf("not each gateway was measured each way:\n%s", table)
	}
}

// TestEachKindOfNoise sends noise and looks at what the server counts: otherwise a frame with a mistake is no noise.
func TestEachKindOfNoise(t *testing.T) {
	lab.NeedNamespaces(t)
	b := &bench{sizes: sizes{devices: 1}, ctx: context.Background(), repo: "../..", dir: t.TempDir()}
	b.bin = filepath.Join(b.dir, "bin")
	lab.Must(t, errors.Join(os.Chmod(filepath.Dir(b.dir), 0o755), build(b.ctx, b.repo, b.bin+"/")))
	b.wantCounted(t, b.sallyport(ours, 1, b.without()...), map[string]string{
		random: "unopened: wrong gate tag", forged: "unopened: wrong gate tag",
		copies: "unspent: nonce already spent", bodies: "unopened: wrong mac",
	})
	b.wantCounted(t, b.sallyport(browsers, 1, append(b.without(), "capture.browser=true")...), map[string]string{
		checks: "unopened: wrong gate tag",
	})
}

// wantCounted sends noise of each kind, which the server must count by this verdict and no other.
func (b *bench) wantCounted(t *testing.T, s *sallyport, kinds map[string]string) {
	t.Helper()
	f, _, err := b.begin(s, 0)
	lab.Must(t, err)
	defer func() { lab.Must(t, errors.Join(f.stop(), f.net.close())) }()
	for kind, verdict := range kinds {
		before := lab.Value(s.counters())(t).Decided
		load := lab.Value(s.noise(kind))(t)
		noise := f.net.blast(load, 10_000)
		lab.Eventually(t, kind, func() bool {
			return lab.Value(s.counters())(t).Decided[verdict] >= before[verdict]+framesEach
		})
		lab.Value(noise.end())(t)
		var after map[string]uint64
		lab.Eventually(t, "the last packet", func() bool {
			earlier := after
			after = lab.Value(s.counters())(t).Decided
			return maps.Equal(earlier, after)
		})
		for other, n := range after {
			if other != verdict && other != "granted" && n != before[other] {
				t.Errorf("%s: %d packets are %s", kind, n-before[other], other)
			}
		}
	}
}

// without returns the setting that switches the kernel's gate off, if there is one: it drops noise uncounted.
func (b *bench) without() []string {
	if setting := variants[0].setting; b.knows(setting) {
		return []string{setting}
	}
	return nil
}

func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"-only open,noise": "",
		"-short":           "",
		"-only speed":      `-only: no part "speed"; there are idle, open, `,
		"now":              `unexpected argument "now"`,
		"-fleet":           "",
		"-gateways 128":    "-gateways: 1 to 127",
		"-clients 13":      "-rounds: at least 1, and 4 × rounds + 2 clients",
	} {
		_, err := parse(strings.Fields(args), new(bytes.Buffer))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", args, err, want)
		}
	}
	if _, err := parse([]string{"-h"}, new(bytes.Buffer)); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v", err)
	}
}

func TestMissingPeers(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := start(context.Background(), nil, new(bytes.Buffer))
	hint := "hint: apt-get install fwknop-server fwknop-client knockd iptables\n"
	if err == nil || !strings.Contains(err.Error(), hint) {
		t.Errorf("got %v, want how to get them", err)
	}
}

func TestTimes(t *testing.T) {
	var all times
	for i := range 100 {
		all = append(all, time.Duration(100-i)*ms)
	}
	if got := all.of(101); got != "100 of 101; 50.0 / 90.0 / 99.0" {
		t.Errorf("got %s", got)
	}
	if got := (times{2 * ms, ms / 10}).of(2); got != "2 of 2; 0.100 / 2.0 / 2.0" {
		t.Errorf("got %s", got)
	}
	if got := times(nil).of(3); got != "0 of 3; -" {
		t.Errorf("got %s", got)
	}
}

func TestFigures(t *testing.T) {
	got := figures("goos: linux\nBenchmarkOpen/clients=1-2 \t 100\t 1316 ns/op\t 0 B/op\n" +
		"BenchmarkGate/two_keys 5 900 ns/op 55.5 ns/packet\nPASS\n")
	want := []figure{{"Gate/two keys", 55.5}, {"Open/clients=1", 1316}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDescends(t *testing.T) {
	parents := map[int]int{1: 0, 10: 1, 11: 10, 12: 11}
	if !descends(parents, 12, 10) || !descends(parents, 10, 10) || descends(parents, 1, 10) || descends(parents, 99, 10) {
		t.Error("wrong descendants")
	}
}
