package client_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/client"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// With the real programs, on hosts of their own.
func TestRealGateway(t *testing.T) {
	bin := lab.Programs(t)
	for name, test := range map[string]func(*testing.T, *lab.Gateway){
		"bad network": badNetwork, "renew": renew, "unreachable at first": unreachableAtFirst,
	} {
		t.Run(name, func(t *testing.T) { test(t, lab.NewGateway(t, bin, "ssh=tcp/22")) })
	}
}

// opens is how many commands go through the bad network, atOnce how many of them at a time: a machine
// that has no time to answer loses packets of its own. They are those of several clients, for one
// that retries as often would fill its memory of packets.
const (
	opens   = 1000
	atOnce  = 250
	clients = 5
)

// Where 30 % of the packets are lost each way and the others come late, twice or in another order,
// at least 999 of 1,000 commands are answered in their 10 s, and however many packets of one
// arrive, it is acted on and charged once.
func badNetwork(t *testing.T, g *lab.Gateway) {
	// The hour's limit is exactly what is asked for: were one retry charged, somebody would be refused.
	limit(t, g, map[string]int{"live_nonces": 4096, "grants": opens, "grants_per_hour": opens / clients})
	routePrefix(t, g)
	if _, err := lab.EchoServer(g.Host, ":22"); err != nil {
		t.Fatal(err)
	}
	profiles := several(t, g)
	g.Start()

	var receipts, doors, packets atomic.Int64
	var all sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i := range opens {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			a, err := openThrough(t.Context(), g, profiles[i%clients], i)
			if err != nil {
				t.Error(err)
				return
			}
			packets.Add(int64(a.Tries))
			if a.Verdict == client.Opened {
				receipts.Add(1)
			}
			if a.Verdict == client.Refused {
				t.Errorf("refused: %v", a.Receipt.Status)
			}
			if door(g, address(i)) {
				doors.Add(1)
			}
		})
	}
	all.Wait()
	t.Logf("%.0f %% lost each way: of %d commands %d had a receipt within 10s, %d doors were open, %d of them without a receipt; %d packets were sent",
		100*lost, opens, receipts.Load(), doors.Load(), doors.Load()-receipts.Load(), packets.Load())
	if receipts.Load() < opens-1 || doors.Load() < receipts.Load() {
		t.Errorf("%d receipts and %d doors of %d commands\n%s", receipts.Load(), doors.Load(), opens, g.Log())
	}
	wantGrantsOnce(t, g, doors.Load())
}

// several are what alice and others were given.
func several(t *testing.T, g *lab.Gateway) []keys.Profile {
	t.Helper()
	profiles := []keys.Profile{hostOf(t, g)}
	for i := 1; i < clients; i++ {
		p, err := keys.ParseToken(g.Enrol(fmt.Sprintf("client%d", i), "ssh"))
		if err != nil {
			t.Fatal(err)
		}
		profiles = append(profiles, *p)
	}
	return profiles
}

// openThrough opens ssh through a relay of its own.
func openThrough(ctx context.Context, g *lab.Gateway, profile keys.Profile, i int) (client.Answer, error) {
	r, err := newRelay(g.Client, address(i), netip.MustParseAddrPort("[2001:db8::1]:62201"), uint64(i))
	if err != nil {
		return client.Answer{}, err
	}
	defer r.close()
	profile.Address, profile.KnockPorts = "127.0.0.1", []uint16{r.port()}
	answers, err := client.Open(ctx, &profile, client.Command{Services: []spa.Service{{Name: "ssh"}}, For: 5 * time.Minute})
	if len(answers) != 1 {
		return client.Answer{}, fmt.Errorf("%d answers: %w", len(answers), err)
	}
	return answers[0], nil
}

// door reports whether ssh is open for an address.
func door(g *lab.Gateway, from netip.Addr) bool {
	var conn net.Conn
	err := g.Client.Do(func() (err error) {
		dialer := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Control: free}
		conn, err = dialer.Dial("tcp6", "[2001:db8::1]:22")
		return err
	})
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// wantGrantsOnce checks by the audit log that every door was opened once.
func wantGrantsOnce(t *testing.T, g *lab.Gateway, doors int64) {
	t.Helper()
	f, err := os.Open(filepath.Join(g.Config, "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	granted, verdicts := map[string]int{}, map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var event struct{ Verdict, Source, From string }
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatal(err)
		}
		verdicts[event.Verdict]++
		if event.Verdict == "granted" {
			granted[event.Source+event.From]++
		}
	}
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

// limit sets limits in server.toml.
func limit(t *testing.T, g *lab.Gateway, limits map[string]int) {
	t.Helper()
	path := filepath.Join(g.Config, "server.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
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
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o640); err != nil {
		t.Fatal(err)
	}
}

// hostOf is what alice has imported.
func hostOf(t *testing.T, g *lab.Gateway) keys.Profile {
	t.Helper()
	profile, err := keys.ReadProfile(filepath.Join(g.Home, "hosts", "gw.toml"))
	if err != nil {
		t.Fatal(err)
	}
	return *profile
}

// lines starts spa-client on the client host and returns its lines, both streams, as they come.
func lines(t *testing.T, g *lab.Gateway, args ...string) (next func(want string), stop func(syscall.Signal) int) {
	t.Helper()
	cmd := g.Command("spa-client", args...)
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := g.Client.Start(cmd); err != nil {
		t.Fatal(err)
	}
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
		deadline := time.After(20 * time.Second)
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

// Open --renew knocks before the time is over, and at once where the machine moves to another
// address; after Ctrl-C what it held open shuts by itself.
func renew(t *testing.T, g *lab.Gateway) {
	if _, err := lab.EchoServer(g.Host, ":22"); err != nil {
		t.Fatal(err)
	}
	g.Start()
	next, stop := lines(t, g, "open", "ssh", "--renew", "--for", "3s")
	next("is open on gw for 192.0.2.2 until")
	next("is open on gw for 192.0.2.2 until") // renewed
	for _, err := range []error{g.Client.DelAddr("vc", "192.0.2.2/24"), g.Client.AddAddr("vc", "192.0.2.77/24")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	next("this machine's address has changed")
	next("is open on gw for 192.0.2.77 until")
	reaches := func() bool {
		conn, err := lab.Dial(g.Client, "", "192.0.2.1:22", 300*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if !reaches() {
		t.Error("ssh is not open from the new address")
	}
	if code := stop(syscall.SIGINT); code != 130 {
		t.Errorf("exit %d, want 130", code)
	}
	lab.Eventually(t, "ssh to shut", func() bool { return !reaches() })
}

// The kernel's word that a port is unreachable, which anyone can forge, ends nothing; nor does a
// knock port that is blocked, as long as there is another.
func unreachableAtFirst(t *testing.T, g *lab.Gateway) {
	path := filepath.Join(g.Home, "hosts", "gw.toml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	several := strings.Replace(string(text), "[62201]", "[9, 62201]", 1) // the gateway has no port 9
	if err := os.WriteFile(path, []byte(several), 0o600); err != nil || several == string(text) {
		t.Fatalf("%v: %s", err, text)
	}
	next, stop := lines(t, g, "open", "ssh")
	g.Start()
	next("is open on gw for 192.0.2.2 until")
	stop(syscall.SIGTERM)
}
