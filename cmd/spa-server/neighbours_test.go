package main

import (
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// tool is an administrator's firewall beside ours, in the gateway of a test.
type tool interface {
	begin()  // takes over the rule set, with the port shut to everyone
	allow()  // opens the port to everyone
	reload() // as after a change of its settings
	end()    // gives up the rule set
}

// neighbours are the tools by name, each with the port behind it, whether it guards IPv6 too, and the place where check
// sees the end of a packet that the tool drops.
var neighbours = []struct {
	name, port string
	ipv6       bool
	make       func(g *gateway) tool
	at         string
}{
	{"ufw", "22", true, newUFW, "iptables table filter"},
	{"firewalld", "22", true, newFirewalld, "table inet firewalld"},
	{"Docker by iptables", "8080", false, newDockerIPTables, "chain DOCKER-USER"},
	{"Docker by nftables", "8080", false, newDockerNFTables, "table ip docker-bridges"},
}

// noTool is a host without a firewall of its own.
type noTool struct{}

func (noTool) begin()  {}
func (noTool) allow()  {}
func (noTool) reload() {}
func (noTool) end()    {}

// beside is a gateway with a tool beside the server.
type beside struct {
	*gateway
	tool
	port  string
	alice spa.Sender
	from  []string // granted address and stranger, in each family

	repairs bool // the guard is where other tools remove it, and must be restored
}

const (
	granted4, stranger4 = "192.0.2.2", "192.0.2.3"
	granted6, stranger6 = "2001:db8::2", "2001:db8::3"
)

func newBeside(t *testing.T, port string, ipv6 bool, make func(g *gateway) tool) *beside {
	t.Helper()
	g := newGateway(t)
	b := &beside{gateway: g, port: port, from: []string{granted4, stranger4}}
	if ipv6 {
		b.from = append(b.from, granted6, stranger6)
		lab.Must(t, g.client.AddAddr("vc", stranger6+"/64"))
	}
	replaceInFile(t, filepath.Join(g.dir, "server.toml"), `ports = ["tcp/22"]`, `ports = ["tcp/`+port+`"]`)
	if port == "22" {
		g.serve(":22")
	}
	b.tool = noTool{}
	if make != nil {
		b.tool = make(g)
	}
	b.alice = sender(g.profile())
	return b
}

// TestNeighbours: beside each tool, started before and after ours, a port is reached only from addresses that both let
// in, a session continues, and the tool never removes the guard.
func TestNeighbours(t *testing.T) {
	for _, n := range neighbours {
		for _, backend := range []string{"nftables", "iptables"} {
			for _, order := range []string{"before", "after"} {
				t.Run(n.name+" "+order+" "+backend, func(t *testing.T) {
					t.Parallel()
					b := newBeside(t, n.port, n.ipv6, n.make)
					b.backend(backend)
					if order == "before" {
						b.begin()
						b.start()
					} else {
						b.start()
						b.begin()
					}
					b.livesBeside(n.at)
				})
			}
		}
	}
}

// backend names the backend that guards.
func (b *beside) backend(name string) {
	b.t.Helper()
	if name == "iptables" {
		lab.NeedProgram(b.t, "iptables", "apt-get install iptables")
	}
	replaceInFile(b.t, filepath.Join(b.dir, "server.toml"), `backend = "auto"`, `backend = "`+name+`"`)
	b.repairs = name == "iptables"
}

// livesBeside runs what the tool may do while the server runs.
func (b *beside) livesBeside(at string) {
	b.t.Helper()
	b.knock(spa.TypeOpen, spa.Granted)
	b.wantReach("granted, but the tool shuts the port")
	b.wantObstacle(at)
	b.allow()
	b.wantReach("granted and allowed", b.granted()...)
	b.wantObstacle("")
	sessions := b.sessions()
	b.reload()
	b.settleGuard()
	b.wantReach("after the tool's reload", b.granted()...)
	b.knock(spa.TypeClose, spa.Closed)
	b.wantReach("allowed, but no longer granted")
	b.end()
	b.settleGuard()
	b.wantReach("the tool is off")
	b.begin()
	b.allow()
	b.settleGuard()
	b.wantReach("the tool is on again")
	b.knock(spa.TypeOpen, spa.Granted)
	b.wantReach("granted once more", b.granted()...)
	b.liveOn(sessions)
}

// liveOn fails for each session that has ended.
func (b *beside) liveOn(sessions map[string]net.Conn) {
	b.t.Helper()
	for from, conn := range sessions {
		if err := lab.Echoes(conn, "still here", lab.Patience); err != nil {
			b.t.Errorf("the session from %s did not live on: %v", from, err)
		}
	}
}

// wantObstacle fails unless check names the place that keeps the port shut, and nothing else.
func (b *beside) wantObstacle(at string) {
	b.t.Helper()
	out, _ := b.run(b.host, "spa-server", "check", "--config", b.dir)
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "drop") && strings.Contains(line, "tcp/"+b.port) {
			found = append(found, line)
		}
	}
	if said := strings.Join(found, ""); (at == "") != (said == "") || !strings.Contains(said, at) {
		b.t.Errorf("check says of what drops tcp/%s: %q, want it to name %q\n%s", b.port, said, at, out)
	}
}

// settleGuard waits until a guard is back that the tool may have removed; see TestGaps for how long it was away.
func (b *beside) settleGuard() {
	b.t.Helper()
	if !b.repairs {
		return
	}
	defer func() {
		if b.t.Failed() {
			b.t.Logf("server:\n%s", b.server.log())
		}
	}()
	for _, from := range b.strangers() {
		lab.Eventually(b.t, "the guard to be back", func() bool { return !b.reaches(from, b.target(from)) })
	}
}

// knock requests access from the granted address of each family; the receipt must pass the tool too.
func (b *beside) knock(what spa.Type, want spa.Status) {
	b.t.Helper()
	for _, from := range b.granted() {
		r := request()
		r.Type = what
		if what == spa.TypeOpen {
			r.For = 10 * time.Minute
		}
		b.wantReceipt(from, b.seal(r, b.alice), b.alice, want)
	}
}

func (b *beside) granted() []string {
	return slices.DeleteFunc(slices.Clone(b.from), isStranger)
}

func (b *beside) strangers() []string {
	return slices.DeleteFunc(slices.Clone(b.from), func(a string) bool { return !isStranger(a) })
}

func isStranger(a string) bool { return a == stranger4 || a == stranger6 }

// target returns the guarded port in the family of an address.
func (b *beside) target(from string) string {
	if netip.MustParseAddr(from).Is6() {
		return "[2001:db8::1]:" + b.port
	}
	return "192.0.2.1:" + b.port
}

// wantReach tries from all addresses at once and fails unless exactly those wanted get through.
func (b *beside) wantReach(when string, want ...string) {
	b.t.Helper()
	reached := make([]bool, len(b.from))
	var all sync.WaitGroup
	for i, from := range b.from {
		all.Go(func() { reached[i] = b.reachesWithin(from, b.target(from), wait(slices.Contains(want, from))) })
	}
	all.Wait()
	var got []string
	for i, from := range b.from {
		if reached[i] {
			got = append(got, from)
		}
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("%s: the port is reached from %v, want %v\nserver:\n%s", when, got, want, b.server.log())
	}
}

// sessions opens connections from the granted addresses.
func (b *beside) sessions() map[string]net.Conn {
	b.t.Helper()
	sessions := make(map[string]net.Conn)
	for _, from := range b.granted() {
		conn, err := b.session(from, b.target(from), lab.Patience)
		if err != nil {
			b.t.Fatalf("a session from %s: %v", from, err)
		}
		sessions[from] = conn
	}
	return sessions
}

// shell is what the commands of tools have in common: they run in the gateway and see their own files.
type shell struct {
	g     *gateway
	files map[string]string
	env   []string
}

// command returns a command that is not started yet.
func (s *shell) command(program string, args ...string) *exec.Cmd {
	s.g.t.Helper()
	cmd := exec.Command(lab.NeedProgram(s.g.t, program, "apt-get install ufw firewalld dbus-daemon nftables iptables"),
		args...)
	cmd.Env = append(cmd.Environ(), s.env...)
	return lab.See(cmd, s.files)
}

// try runs a command to its end and returns its output.
func (s *shell) try(stdin, program string, args ...string) (string, error) {
	s.g.t.Helper()
	cmd := s.command(program, args...)
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	lab.Must(s.g.t, s.g.host.Start(cmd))
	err := cmd.Wait()
	return out.String(), err
}

// run runs a command that must succeed.
func (s *shell) run(program string, args ...string) { s.g.t.Helper(); s.feed("", program, args...) }

// feed runs a command with an input.
func (s *shell) feed(stdin, program string, args ...string) {
	s.g.t.Helper()
	if out, err := s.try(stdin, program, args...); err != nil {
		s.g.t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out, stdin)
	}
}
