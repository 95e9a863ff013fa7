package etcd_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/fleet/etcd"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
	"sallyport/spa/lab"
)

// site is what the gateways of a test share.
type site struct {
	cluster etcd.Cluster
	fleet   keys.FleetID
	key     share.Key
}

func newSite(t testing.TB, stores int) site {
	return site{etcd.NewCluster(t, stores), keys.NewFleetID(),
		share.DeriveKey(bytes.Repeat([]byte("k"), 32), keys.ServerID{1})}
}

// gateway is a server without a firewall.
type gateway struct {
	*member.Member
	socket string
	stop   func()

	mu        sync.Mutex
	installed []string
	raised    []string
}

// Install implements member.Site.
func (g *gateway) Install(n member.News) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.installed = append(g.installed, string(n.Outcome))
}

// Raise implements member.Site.
func (g *gateway) Raise(floor []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.raised = append(g.raised, string(floor))
	return nil
}

func (g *gateway) has() (installed, raised int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.installed), len(g.raised)
}

// start starts a gateway's server at a socket.
func (s site) start(t testing.TB, name, socket string) *gateway {
	t.Helper()
	g := &gateway{socket: socket}
	g.Member = member.New(member.Config{Fleet: s.fleet, Site: "edge", Member: name, Key: s.key, Window: time.Minute,
		To: g})
	l := lab.Value(net.Listen("unix", socket))(t)
	ctx, cancel := context.WithCancel(t.Context())
	agents := make(chan net.Conn)
	var running sync.WaitGroup
	running.Go(func() { g.Run(ctx, agents) })
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case agents <- conn:
			case <-ctx.Done():
				conn.Close()
			}
		}
	})
	g.stop = sync.OnceFunc(func() { cancel(); l.Close(); running.Wait() })
	t.Cleanup(g.stop)
	return g
}

// agent runs a gateway's agent as its page configures it, until the function that it returns is called.
func (s site) agent(t testing.TB, name, socket string, log *slog.Logger) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	ca, cert, key := s.cluster.Files(t, name)
	lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), fmt.Appendf(nil, "version = 1\ngateway = %q\n"+
		"from = \"etcd://%s\"\nfleet = \"%s\"\nca = %q\ncert = %q\nkey = %q\nshare = %q\n", name, s.cluster.Hosts(), s.fleet,
		ca, cert, key, socket), 0o644))
	bridge, closing, err := lab.Value(agent.Load(dir))(t).OpenBridge(log)
	lab.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { bridge.Run(ctx) })
	stop = sync.OnceFunc(func() { cancel(); running.Wait(); lab.Must(t, closing()) })
	t.Cleanup(stop)
	return stop
}

// knock spends a packet. It returns how the member decided it: 0 if it remains silent.
func (g *gateway) knock(t testing.TB, packet, request int, outcome string) (how member.How, got string) {
	t.Helper()
	before := g.Status()
	var mu sync.Mutex
	spend := &member.Spend{Key: 7, Nonce: [24]byte{byte(packet), byte(packet >> 8), 1},
		Request: [16]byte{byte(request), byte(request >> 8), 1},
		Decide: func(how2 member.How, a *member.Attempt, text []byte) {
			mu.Lock()
			defer mu.Unlock()
			how, got = how2, string(text)
			if how2 == member.Act {
				g.Settled(a, []byte(outcome), time.Now().Add(time.Hour))
			}
		}}
	if !g.Spend(spend) {
		t.Fatal("it drops the packet")
	}
	lab.Eventually(t, "a packet is decided", func() bool {
		s := g.Status()
		mu.Lock()
		defer mu.Unlock()
		return s.Waiting == 0 && (how != 0 || s.Counts.Spent+s.Counts.Unanswered+s.Counts.Pending >
			before.Counts.Spent+before.Counts.Unanswered+before.Counts.Pending)
	})
	mu.Lock()
	defer mu.Unlock()
	return how, got
}

// end ends something for all members, and reports whether that is known.
func (g *gateway) end(floor string) bool {
	done := make(chan bool, 1)
	g.End([]byte(floor), time.Hour, func(ok bool) { done <- ok })
	return <-done
}

func alive(t testing.TB, gateways ...*gateway) {
	t.Helper()
	for _, g := range gateways {
		lab.Eventually(t, "the member is alive", func() bool { return g.Alive() && g.Status().Connected })
	}
}

// TestShare: two gateways with agents spend each packet once, know each other's outcomes and floors, and go on after
// each restart of a server, an agent or the store.
func TestShare(t *testing.T) {
	s, dir := newSite(t, 1), t.TempDir()
	quiet := slog.New(slog.DiscardHandler)
	socket := func(name string) string { return filepath.Join(dir, name) }
	stopAgent := s.agent(t, "a", socket("a"), quiet) // before there is a server
	s.agent(t, "b", socket("b"), quiet)
	a, b := s.start(t, "a", socket("a")), s.start(t, "b", socket("b"))
	packets := 0
	next := func() int { packets++; return packets }
	all := func() {
		t.Helper()
		alive(t, a, b)
		var packet int
		lab.Eventually(t, "a new packet acts", func() bool {
			packet = next()
			how, _ := a.knock(t, packet, packet, fmt.Sprint("outcome of ", packet))
			return how == member.Act
		})
		if how, _ := b.knock(t, packet, packet, "b's"); how != 0 {
			t.Errorf("a copy at the other gateway: %v", how)
		}
		lab.Eventually(t, "a retry at the other gateway is a repeat", func() bool {
			how, got := b.knock(t, next(), packet, "b's")
			if how == member.Act || how == member.Repeat && got != fmt.Sprint("outcome of ", packet) {
				t.Errorf("a retry: %v, %q", how, got)
			}
			return how == member.Repeat
		})
		_, raised := b.has()
		lab.Eventually(t, "a close is answered", func() bool { return a.end("floor") })
		if _, now := b.has(); now <= raised {
			t.Error("it was answered before the other gateway had the floor in force")
		}
	}
	all()

	t.Log("an agent is restarted")
	stopAgent()
	lab.Eventually(t, "the server notices", func() bool { return !a.Status().Connected })
	stopAgent = s.agent(t, "a", socket("a"), quiet)
	all()

	t.Log("a server is restarted")
	a.stop()
	a = s.start(t, "a", socket("a"))
	all()

	t.Log("the store is restarted")
	s.cluster.Restart(t, 0)
	all()

	t.Log("a member is gone: a close waits for its session to end")
	stopAgent()
	alive(t, b)
	began := time.Now()
	if !b.end("floor") {
		t.Error("a close is not answered after the other gateway's session")
	}
	t.Logf("a close was answered after %v", time.Since(began))
	if installed, _ := b.has(); installed == 0 {
		t.Error("it has no outcome of the other gateway")
	}
}

// TestNoise: keys and values that no member writes do not keep a gateway from what members write.
func TestNoise(t *testing.T) {
	s, dir := newSite(t, 1), t.TempDir()
	a, b := s.start(t, "a", filepath.Join(dir, "a")), s.start(t, "b", filepath.Join(dir, "b"))
	for _, noise := range []string{"f/x", "f/", "f", "o/" + strings.Repeat("0", 32), "o/" + strings.Repeat("1", 32),
		"s/A B", "s/c", "a/c", "a/d", "p/x"} {
		s.cluster.Put(t, share.Prefix(s.fleet, "edge")+noise, strings.Repeat("x", 40000))
	}
	s.agent(t, "a", filepath.Join(dir, "a"), slog.New(slog.DiscardHandler))
	s.agent(t, "b", filepath.Join(dir, "b"), slog.New(slog.DiscardHandler))
	alive(t, a, b)
	s.cluster.Put(t, share.Prefix(s.fleet, "edge")+"f/"+strings.Repeat("2", 32), "")
	packet := 0
	lab.Eventually(t, "a packet acts", func() bool {
		packet++
		how, _ := a.knock(t, packet, packet, "x")
		return how == member.Act
	})
	lab.Eventually(t, "the other gateway has the outcome", func() bool { installed, _ := b.has(); return installed > 0 })
}

// TestBridgeUnfit: an agent does not serve a server of another name, and says why.
func TestBridgeUnfit(t *testing.T) {
	s, log := newSite(t, 1), new(lab.Buffer)
	socket := filepath.Join(t.TempDir(), "s")
	s.start(t, "a", socket)
	s.agent(t, "b", socket, slog.New(slog.NewTextHandler(log, nil)))
	lab.Eventually(t, "it is logged", func() bool {
		return bytes.Contains([]byte(log.String()), []byte("it is the gateway a, and not b"))
	})
}
