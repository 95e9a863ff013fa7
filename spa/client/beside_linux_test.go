package client_test

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// fate is what a path does with packets: it is made anew for each connection.
type fate func() func(kind, bool) (later time.Duration, lost bool)

// first applies something to the first packet of a kind, in a family if not both.
func first(k kind, later time.Duration, lost bool) fate {
	return func() func(kind, bool) (time.Duration, bool) {
		done := false
		return func(got kind, _ bool) (time.Duration, bool) {
			if got != k || done {
				return 0, false
			}
			done = true
			return later, lost
		}
	}
}

// never loses all packets of a kind in one family.
func never(k kind, six bool) fate {
	return func() func(kind, bool) (time.Duration, bool) {
		return func(got kind, is6 bool) (time.Duration, bool) { return 0, got == k && is6 == six }
	}
}

// The delay of the path, and how much later a packet is that must come after another.
const (
	oneWay = 20 * time.Millisecond
	behind = 15 * time.Millisecond
)

// trip is a connection and what the path must have carried.
type trip struct {
	fate    fate
	address string // of the gateway; empty: of each family in turn
	args    []string
	fails   bool // there is no connection
	sockets int  // the most that the client may try
	exactly bool // no fewer either
	answers int  // SYN+ACKs; 0: not checked
	home    string
}

const dual = "gw.example.net"

// trips are the orders in which the packets of the knock and of the connection may arrive.
func trips(once bool) map[string]trip {
	ssh := []string{"ssh"}
	all := map[string]trip{
		"the grant first": {args: ssh, sockets: 1, exactly: true, answers: 1},
		"the SYN first": {args: ssh, fate: first(knock, behind, false), sockets: 2, exactly: true,
			answers: 1},
		"the knock is lost":             {args: ssh, fate: first(knock, 0, true), sockets: 2, exactly: true, answers: 1},
		"the receipt is lost":           {args: ssh, fate: first(receipt, 0, true), sockets: 1, exactly: true, answers: 1},
		"refused":                       {args: []string{"other", "--port", "26"}, sockets: 1, fails: true},
		"nothing listens":               {args: []string{"dead"}, sockets: 2, fails: true},
		"both families":                 {args: ssh, address: dual, sockets: 3, answers: 0},
		"only IPv6 answers":             {args: ssh, address: dual, fate: never(knock, false), sockets: 2},
		"only IPv4 answers":             {args: ssh, address: dual, fate: never(knock, true), sockets: 1, exactly: true},
		"no connection by IPv4":         {args: ssh, address: dual, fate: never(syn, false), sockets: 3},
		"the answer to the SYN is late": {args: ssh, fate: first(synAck, 4*behind, false), sockets: 2, exactly: true},
		"no receipts":                   {args: ssh, home: "quiet", sockets: 100},
	}
	if once {
		single := []string{"single"}
		all["once, the grant first"] = trip{args: single, sockets: 1, exactly: true, answers: 1}
		all["once, the SYN first"] = trip{args: single, fate: first(knock, behind, false), sockets: 2, exactly: true,
			answers: 1}
		all["once, the receipt is lost"] = trip{args: single, fate: first(receipt, 0, true), sockets: 1, exactly: true,
			answers: 1}
		all["once, the answer to the SYN is late"] = trip{args: single, fate: first(synAck, 4*behind, false), sockets: 2,
			exactly: true, answers: 1}
	}
	return all
}

// TestBesideTheKnock: whichever of the knock and the SYN arrives first and whatever is lost, connect gets through
// without the system's sending a SYN again, with few sockets, and leaves none.
func TestBesideTheKnock(t *testing.T) {
	lab.NeedOwnRoot(t)
	bin := lab.Programs(t)
	t.Run("wait", func(t *testing.T) { waitBeside(t, bin) })
	for _, guard := range []struct{ backend, closed string }{
		{"nftables", "drop"}, {"nftables", "reject"}, {"iptables", "drop"},
	} {
		t.Run(guard.backend+" "+guard.closed, func(t *testing.T) {
			if guard.backend == "iptables" {
				lab.NeedProgram(t, "iptables", "apt-get install iptables")
			}
			g, p := guardedPath(t, bin, guard.backend, guard.closed)
			if guard.closed == "reject" {
				refusedByICMP(t, g, p)
			}
			for name, c := range trips(guard.backend == "nftables") {
				addresses := []string{c.address}
				if c.address == "" {
					addresses = []string{far4, far6}
				}
				for _, c.address = range addresses {
					t.Run(name+" "+c.address, func(t *testing.T) { c.run(t, g, p) })
				}
			}
		})
	}
}

// refusedByICMP: a host's own firewall that refuses the first SYN by ICMP costs no more than one that drops it.
func refusedByICMP(t *testing.T, g *lab.Gateway, p *path) {
	t.Helper()
	nft := lab.NeedProgram(t, "nft", "apt-get install nftables")
	for _, address := range []string{far4, far6} {
		const first = "table inet first { chain refused { type filter hook prerouting priority -300; " +
			"tcp dport 22 tcp flags syn limit rate 1/hour burst 1 packets reject with icmpx admin-prohibited; }; }"
		if out, code := lab.Run(t, g.Host, exec.Command(nft, first)); code != 0 {
			t.Fatal(out)
		}
		trip{args: []string{"ssh"}, address: address, sockets: 2, answers: 1}.run(t, g, p)
		if out, code := lab.Run(t, g.Host, exec.Command(nft, "delete table inet first")); code != 0 {
			t.Fatal(out)
		}
	}
}

// waitBeside: exec and open --wait try the port beside the knock once a receipt has said that the service
// admits several connections. They leave the grant of one that admits one connection as it is, even if an earlier
// receipt said otherwise.
func waitBeside(t *testing.T, bin string) {
	g, p := guardedPath(t, bin, "nftables", "drop")
	known := filepath.Join(g.Home, "several", "gw")
	for i, c := range []struct {
		args   []string
		beside bool
		knows  string // afterwards
	}{
		{[]string{"exec", "ssh", "--", "true"}, false, "ssh"},
		{[]string{"exec", "ssh", "--", "true"}, true, "ssh"},
		{[]string{"open", "ssh", "--wait"}, true, "ssh"},
		{[]string{"open", "ssh"}, false, "ssh"},
		{[]string{"exec", "single", "--", "true"}, false, "ssh"},
		{[]string{"exec", "single", "--", "true"}, false, "ssh"},
		{[]string{"exec", "single", "--", "true"}, true, "ssh"}, // it was changed
		{[]string{"exec", "single", "--", "true"}, false, "ssh"},
		{[]string{"open", "single", "--wait"}, true, "ssh"}, // it was changed
	} {
		server := hostOf(t, g).ServerID.String()
		if changed := c.beside && c.args[1] == "single"; changed {
			lab.Must(t, os.WriteFile(known, []byte(server+"\nssh\nsingle\n"), 0o600))
		}
		p.forget(nil)
		out, code := lab.Run(t, g.Client, named(t, g.Command("spa-client", append(c.args[:2:2],
			append([]string{"--source", "observed"}, c.args[2:]...)...)...)))
		if code != 0 || p.beside() != c.beside {
			t.Fatalf("%d, %v: exit %d, beside: %v; it said %q", i, c.args, code, p.beside(), out)
		}
		if got := string(lab.Value(os.ReadFile(known))(t)); got != server+"\n"+c.knows+"\n" {
			t.Errorf("%d, %v: %s has %q", i, c.args, known, got)
		}
		port := map[string]string{"ssh": ":22", "single": ":23"}[c.args[1]]
		conn := lab.Value(lab.Dial(g.Client, "", far4+port, lab.Patience))(t)
		lab.Must(t, lab.Echoes(conn, "hello", lab.Patience))
		conn.Close()
		shut(t, g, p)
	}
}

// guardedPath returns a running gateway behind a path. Its service single admits one connection if the backend can do
// that, dead has a port on which nothing listens, and the client alice may not open other.
func guardedPath(t *testing.T, bin, backend, closed string) (*lab.Gateway, *path) {
	t.Helper()
	g := lab.NewGateway(t, bin, "ssh=tcp/22", "single=tcp/23", "dead=tcp/24")
	file := filepath.Join(g.Config, "server.toml")
	text := string(lab.Value(os.ReadFile(file))(t))
	text = strings.Replace(text, `backend = "auto"`, `backend = "`+backend+`"`, 1)
	text = strings.Replace(text, `closed = "drop"`, `closed = "`+closed+`"`, 1)
	if backend == "nftables" {
		text = strings.Replace(text, "[service.single]\n", "[service.single]\nonce = true\n", 1)
	}
	text += "\n[service.other]\nports = [\"tcp/26\"]\n"
	lab.Must(t, os.WriteFile(file, []byte(text), 0o640))
	p := newPath(t, g, oneWay)
	behindPath(t, g, dual)
	for _, port := range []string{":22", ":23"} {
		lab.Value(lab.EchoServer(g.Host, port))(t)
	}
	g.Start()
	return g, p
}

// run connects, and checks what the path carried. On a machine that had no time for it, it tries again.
func (c trip) run(t *testing.T, g *lab.Gateway, p *path) {
	var wrong string
	for range 5 {
		var carry func(kind, bool) (time.Duration, bool)
		if c.fate != nil {
			carry = c.fate()
		}
		p.forget(carry)
		out, through := c.connect(t, g)
		if through == c.fails {
			t.Fatalf("through: %v; it said %q\n%s", through, out, g.Log())
		}
		lab.Eventually(t, "no connection at the gateway", func() bool { return sockets(t, g.Host) == 0 })
		beside := p.beside()
		tried, again, seen := p.counts()
		shut(t, g, p)
		if tried <= c.sockets && again == 0 && (beside || c.home != "") && (!c.exactly || tried == c.sockets) &&
			(c.answers == 0 || seen[synAck] == c.answers) {
			return
		}
		wrong = out
		t.Logf("%d sockets, %d SYNs sent again, %d SYN+ACKs, %d refusals", tried, again, seen[synAck], seen[reset])
	}
	t.Errorf("%+v: the path carried something else; it said %q", c, wrong)
}

// connect runs spa-client connect until a byte comes back, and reports whether one did.
func (c trip) connect(t *testing.T, g *lab.Gateway) (string, bool) {
	t.Helper()
	home := filepath.Join(t.TempDir(), "home")
	profile := lab.Value(keys.ReadProfile(filepath.Join(g.Home, "hosts", "gw.toml")))(t)
	profile.Address, profile.Receipts = c.address, c.home == ""
	g.Import(home, profile.Token())
	cmd := exec.Command(filepath.Join(g.Bin, "spa-client"), append([]string{"--config", home, "connect", "--source",
		"observed", "--timeout", "5s"}, c.args...)...)
	if c.address == dual {
		cmd = named(t, cmd)
	}
	in, out := lab.Value(cmd.StdinPipe())(t), lab.Value(cmd.StdoutPipe())(t)
	var said bytes.Buffer
	cmd.Stderr = &said
	lab.Must(t, g.Client.Start(cmd))
	_, _ = io.WriteString(in, "x") // it may have failed already
	_, err := bufio.NewReader(out).ReadByte()
	in.Close()
	_ = cmd.Wait() // the byte shows
	return said.String(), err == nil
}

// shut ends the grants, which would let in the SYN of the next trip.
func shut(t *testing.T, g *lab.Gateway, p *path) {
	t.Helper()
	p.forget(nil)
	cmd := named(t, g.Command("spa-client", "close", "ssh", "single", "dead", "--source", "observed"))
	if out, code := lab.Run(t, g.Client, cmd); code != 0 {
		t.Fatalf("close: %s", out)
	}
}

// named makes a command see the gateway's name.
func named(t *testing.T, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "hosts")
	lab.Must(t, os.WriteFile(hosts, []byte(far4+" "+dual+"\n"+far6+" "+dual+"\n"), 0o644))
	return lab.See(cmd, map[string]string{"/etc/hosts": hosts})
}

// sockets counts a host's TCP sockets that belong to a connection, even a half-open one.
func sockets(t *testing.T, h *lab.Host) int {
	t.Helper()
	n := 0
	for _, file := range []string{"tcp", "tcp6"} {
		var text []byte
		lab.Must(t, h.Do(func() (err error) {
			text, err = os.ReadFile("/proc/thread-self/net/" + file)
			return err
		}))
		for line := range strings.Lines(string(text)) {
			const listen, timeWait, state = "0A", "06", 3
			if f := strings.Fields(line); len(f) > state && f[state] != listen && f[state] != timeWait && f[0] != "sl" {
				n++
			}
		}
	}
	return n
}
