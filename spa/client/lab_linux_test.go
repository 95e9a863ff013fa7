package client_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// With the real programs, on their own hosts.
func TestRealGateway(t *testing.T) {
	bin := lab.Programs(t)
	for name, test := range map[string]func(*testing.T, *lab.Gateway){
		"bad network": badNetwork, "renew": renew, "unreachable at first": unreachableAtFirst,
	} {
		t.Run(name, func(t *testing.T) { test(t, lab.NewGateway(t, bin, "ssh=tcp/22")) })
	}
}

// opens is how many commands go through the bad network, atOnce how many of them at a time, fewer if the machine is
// slow: a machine without time to answer loses packets itself. They belong to several clients, since one that retries
// so often would fill its memory of packets.
const (
	opens   = 1000
	atOnce  = 250
	clients = 5
	late    = 25 * time.Millisecond
)

// If 30 % of the packets are lost each way and the others are delayed, duplicated or reordered, at least 999 of 1,000
// commands are answered in their 10 s, and however many packets of one arrive, it acts and is charged once. A machine
// that is too slow for that gets more attempts.
func badNetwork(t *testing.T, g *lab.Gateway) {
	// The hourly limit is exactly the number of requests: if a retry were charged, one would be refused.
	limit(t, g, map[string]int{"live_nonces": 4096, "grants": opens, "grants_per_hour": opens / clients})
	routePrefix(t, g)
	_, err := lab.EchoServer(g.Host, ":22")
	lab.Must(t, err)
	times := []time.Duration{client.DefaultTimeout, lab.Patience}
	profiles := several(t, g, len(times)*clients)
	g.Start()
	var doors int64
	for i, timeout := range times {
		o := openAll(t, g, profiles[i*clients:][:clients], i*opens, timeout)
		t.Logf("%.0f %% lost each way: of %d commands %d had a receipt within %v, %d doors were open, %d of them without a "+
			"receipt; %d packets were sent",
			100*lost, opens, o.receipts.Load(), timeout, o.doors.Load(), o.doors.Load()-o.receipts.Load(), o.packets.Load())
		doors += o.doors.Load()
		if o.doors.Load() < o.receipts.Load() {
			t.Errorf("%d receipts and %d doors", o.receipts.Load(), o.doors.Load())
		}
		if o.receipts.Load() >= opens-1 {
			wantGrantsOnce(t, g, doors)
			return
		}
	}
	t.Errorf("too few receipts\n%s", g.Log())
}

// outcome counts the results of many commands.
type outcome struct{ receipts, doors, packets atomic.Int64 }

// openAll opens ssh for that many addresses, from the first on, with several clients.
func openAll(t *testing.T, g *lab.Gateway, profiles []keys.Profile, first int, timeout time.Duration) *outcome {
	t.Helper()
	o := new(outcome)
	var all sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i := range opens {
		places <- struct{}{}
		whenIdle()
		all.Go(func() {
			defer func() { <-places }()
			a, err := openThrough(t.Context(), g, profiles[i%len(profiles)], first+i, timeout)
			if err != nil {
				t.Error(err)
				return
			}
			o.packets.Add(int64(a.Tries))
			if a.Verdict == client.Opened {
				o.receipts.Add(1)
			}
			if a.Verdict == client.Refused {
				t.Errorf("refused: %v", a.Receipt.Status)
			}
			if door(g, address(first+i)) {
				o.doors.Add(1)
			}
		})
	}
	all.Wait()
	return o
}

// whenIdle returns when the machine is fast enough.
func whenIdle() {
	for begun := time.Now().Add(-late); time.Since(begun) >= late; {
		begun = time.Now()
		<-time.After(time.Millisecond)
	}
}

// several returns the profiles of alice and others.
func several(t *testing.T, g *lab.Gateway, n int) []keys.Profile {
	t.Helper()
	profiles := []keys.Profile{hostOf(t, g)}
	for i := 1; i < n; i++ {
		p := lab.Value(keys.ParseToken(g.Enrol(fmt.Sprintf("client%d", i), "ssh")))(t)
		profiles = append(profiles, *p)
	}
	return profiles
}

// openThrough opens ssh through its own relay.
func openThrough(ctx context.Context, g *lab.Gateway, profile keys.Profile, i int,
	timeout time.Duration) (client.Answer, error) {
	r, err := newRelay(g.Client, address(i), netip.MustParseAddrPort("[2001:db8::1]:62201"), uint64(i))
	if err != nil {
		return client.Answer{}, err
	}
	defer r.close()
	profile.Address, profile.KnockPorts = "127.0.0.1", []uint16{r.port()}
	answers, err := client.Open(ctx, &profile, client.Command{Services: []service.Service{{Name: "ssh"}},
		For: 10 * time.Minute, Timeout: timeout})
	if len(answers) != 1 {
		return client.Answer{}, fmt.Errorf("%d answers: %w", len(answers), err)
	}
	return answers[0], nil
}

// door reports whether ssh is open for an address.
func door(g *lab.Gateway, from netip.Addr) bool {
	var conn net.Conn
	err := g.Client.Do(func() (err error) {
		dialer := net.Dialer{Timeout: lab.Patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)),
			Control: free}
		conn, err = dialer.Dial("tcp6", "[2001:db8::1]:22")
		return err
	})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// wantGrantsOnce checks in the audit log that every port was opened once.
func wantGrantsOnce(t *testing.T, g *lab.Gateway, doors int64) {
	t.Helper()
	var granted, verdicts map[string]int
	lab.Eventually(t, "a line of each grant", func() bool {
		granted, verdicts = audited(t, g)
		return int64(verdicts["granted"]) >= doors
	})
	t.Logf("spent packets by verdict: %v", verdicts)
	if int64(verdicts["granted"]) != doors {
		t.Errorf("%d grants, want one for each of %d doors", verdicts["granted"], doors)
	}
	for source, n := range granted {
		if n != 1 {
			t.Errorf("%s was granted %d times", source, n)
		}
	}
	if verdicts["repeated"] == 0 {
		t.Error("no packet was a repetition: the network was not bad")
	}
}

// audited counts the lines of the audit log: grants by the packet's source, and all by verdict.
func audited(t *testing.T, g *lab.Gateway) (granted, verdicts map[string]int) {
	t.Helper()
	text := lab.Value(os.ReadFile(filepath.Join(g.Config, "audit.jsonl")))(t)
	granted, verdicts = map[string]int{}, map[string]int{}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break // a line that is being written
		}
		var event struct{ Verdict, Source, From string }
		lab.Must(t, json.Unmarshal(line, &event))
		verdicts[event.Verdict]++
		if event.Verdict == "granted" {
			granted[event.Source+event.From]++
		}
	}
	return granted, verdicts
}

// limit sets limits in server.toml.
func limit(t testing.TB, g *lab.Gateway, limits map[string]int) {
	t.Helper()
	path := filepath.Join(g.Config, "server.toml")
	text := lab.Value(os.ReadFile(path))(t)
	var lines []string
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		if n, ok := limits[name]; ok {
			line = fmt.Sprintf("%s = %d\n", name, n)
			delete(limits, name)
		}
		lines = append(lines, line)
	}
	if len(limits) != 0 {
		t.Fatalf("server.toml has no %v", limits)
	}
	lab.Must(t, os.WriteFile(path, []byte(strings.Join(lines, "")), 0o640))
}

// hostOf returns alice's imported profile.
func hostOf(t *testing.T, g *lab.Gateway) keys.Profile {
	t.Helper()
	profile := lab.Value(keys.ReadProfile(filepath.Join(g.Home, "hosts", "gw.toml")))(t)
	return *profile
}

// lines starts spa-client on the client host and returns its lines on both streams as they come.
func lines(t *testing.T, g *lab.Gateway, args ...string) (next func(want string), stop func(syscall.Signal) int) {
	t.Helper()
	cmd := g.Command("spa-client", args...)
	out, w, err := os.Pipe()
	lab.Must(t, err)
	cmd.Stdout, cmd.Stderr = w, w
	lab.Must(t, g.Client.Start(cmd))
	w.Close()
	said := make(chan string, 100)
	go func() {
		defer close(said)
		defer out.Close()
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			said <- scanner.Text()
		}
	}()
	next = func(want string) {
		t.Helper()
		deadline := time.After(lab.Patience)
		for {
			select {
			case line, ok := <-said:
				if !ok {
					t.Fatalf("it ended without saying %q", want)
				}
				if strings.Contains(line, want) {
					return
				}
				t.Logf("spa-client: %s", line)
			case <-deadline:
				t.Fatalf("it did not say %q\nserver:\n%s", want, g.Log())
			}
		}
	}
	return next, func(s syscall.Signal) int {
		cmd.Process.Signal(s)
		for range said {
		}
		cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
}

// renew: open --renew knocks before the time is over, and at once if the machine's address changes; after Ctrl-C its
// grants end on time.
func renew(t *testing.T, g *lab.Gateway) {
	_, err := lab.EchoServer(g.Host, ":22")
	lab.Must(t, err)
	g.Start()
	reaches := func() bool {
		conn, err := lab.Dial(g.Client, "", "192.0.2.1:22", 300*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	next, stop := lines(t, g, "open", "ssh", "--renew", "--for", "3s")
	next("is open on gw for 192.0.2.2 until")
	next("is open on gw for 192.0.2.2 until") // renewed
	lab.Eventually(t, "ssh to be open", reaches)
	if code := stop(syscall.SIGINT); code != 130 {
		t.Errorf("exit %d, want 130", code)
	}
	lab.Eventually(t, "ssh to shut", func() bool { return !reaches() })

	for i := 3; i <= 9; i++ { // with the first gone, one of them might take its place
		lab.Must(t, g.Client.DelAddr("vc", fmt.Sprintf("192.0.2.%d/24", i)))
	}
	next, stop = lines(t, g, "open", "ssh", "--renew", "--for", "10m") // renewed because of the time much later
	next("is open on gw for 192.0.2.2 until")
	lab.Must(t, g.Client.DelAddr("vc", "192.0.2.2/24"))
	lab.Must(t, g.Client.AddAddr("vc", "192.0.2.77/24"))
	next("this machine's address has changed")
	next("is open on gw for 192.0.2.77 until")
	lab.Eventually(t, "ssh to be open from the new address", reaches)
	stop(syscall.SIGINT)
}

// An ICMP error, which anyone can forge, ends nothing; nor does a blocked knock port, if there is another.
func unreachableAtFirst(t *testing.T, g *lab.Gateway) {
	path := filepath.Join(g.Home, "hosts", "gw.toml")
	text := lab.Value(os.ReadFile(path))(t)
	several := strings.Replace(string(text), "[62201]", "[9, 62201]", 1) // the gateway has no port 9
	if err := os.WriteFile(path, []byte(several), 0o600); err != nil || several == string(text) {
		t.Fatalf("%v: %s", err, text)
	}
	next, stop := lines(t, g, "open", "ssh", "--timeout", "1m")
	lab.Eventually(t, "two packets that nobody takes", func() bool { return refused(t, g.Host) >= 2 })
	g.Start()
	next("is open on gw for 192.0.2.2 until")
	stop(syscall.SIGTERM)
}

// refused returns how many datagrams a host answered with a port-unreachable error.
func refused(t *testing.T, h *lab.Host) int {
	t.Helper()
	var text []byte
	lab.Must(t, h.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	}))
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Udp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		n := lab.Value(strconv.Atoi(fields[slices.Index(names, "NoPorts")]))(t)
		return n
	}
	t.Fatalf("no count of datagrams in %s", text)
	return 0
}
