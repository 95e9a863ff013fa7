package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// inner is a gateway whose port 2222 leads to the real sshd of a machine behind it.
type inner struct {
	*gateway
	machine *lab.Host
	files   string // ssh's keys and configuration
	ends
}

// ends are the addresses of one family.
type ends struct{ name, at, alice, stranger, behind string }

var endsOfBoth = []ends{
	{"IPv4", "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.5"},
	{"IPv6", "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:1::5"},
}

func newInner(t *testing.T, backend string, settings ...string) *inner {
	t.Helper()
	lab.NeedRoot(t) // sshd changes its user
	g := &inner{gateway: newGateway(t), files: t.TempDir()}
	g.guardBy(backend)
	g.machine = lab.New(t, "inner")[0]
	lab.Must(t, lab.Link(g.host, "in", g.machine, "eth0"))
	for _, a := range [][3]string{{"198.51.100.1/24", "198.51.100.5/24", "198.51.100.1"},
		{"2001:db8:1::1/64", "2001:db8:1::5/64", "2001:db8:1::1"}} {
		lab.Must(t, g.host.AddAddr("in", a[0]))
		lab.Must(t, g.machine.AddAddr("eth0", a[1]))
		lab.Must(t, g.machine.Route("default", a[2]))
	}
	lab.Must(t, g.client.AddAddr("vc", "2001:db8::3/64"))
	lab.Must(t, g.client.Route("198.51.100.0/24", "192.0.2.1"))
	lab.Must(t, g.client.Route("2001:db8:1::/64", "2001:db8::1"))
	lab.Must(t, g.host.Forward())
	g.fails(0, append([]string{"set", "--config", g.dir, "service.inner.ports=tcp/2222",
		"service.inner.forward=198.51.100.5:22,[2001:db8:1::5]:22"}, settings...)...)
	g.must("spa-keygen", "set", "alice", "allow=ssh,inner", "--config", g.dir)
	g.sshd()
	return g
}

// sshd runs a real sshd on the machine behind the gateway.
func (g *inner) sshd() {
	g.t.Helper()
	path := lab.NeedProgram(g.t, "sshd", "apt-get install openssh-server")
	lab.NeedProgram(g.t, "ssh", "apt-get install openssh-client")
	file := func(name string) string { return filepath.Join(g.files, name) }
	for _, name := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file(name)).CombinedOutput()
		if err != nil {
			g.t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	lab.Must(g.t, os.WriteFile(file("sshd"), []byte("Port 22\nHostKey "+file("host")+"\nAuthorizedKeysFile "+
		file("user.pub")+"\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"), 0o600))
	var said bytes.Buffer
	// An empty home: what root's shell runs at a login, such as a version manager that waits for a lock, is not tested.
	cmd := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /run && mkdir -m 755 /run/sshd &&
		mount -t tmpfs none ~root && exec "$0" -D -e -f "$1"`, path, file("sshd"))
	cmd.Stderr = &said
	cmd.WaitDelay = time.Millisecond // the processes of cut sessions keep its output open
	lab.Must(g.t, g.machine.Start(cmd))
	g.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if g.t.Failed() {
			g.t.Logf("sshd:\n%s", said.String())
		}
	})
	lab.Eventually(g.t, "sshd to listen", func() bool {
		conn, err := lab.Dial(g.machine, "", "127.0.0.1:22", lab.Patience)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// over chooses the family.
func (g *inner) over(e ends) {
	g.t.Helper()
	g.ends = e
	g.readdress(func(p *keys.Profile) { p.Address = e.at })
}

// knock opens the forwarded port as alice.
func (g *inner) knock(last string) {
	g.t.Helper()
	out, code := g.run(g.client, "spa-client", "open", "inner", "--host", "gw", "--config", g.home, "--source", g.alice,
		"--for", last)
	if code != 0 {
		g.t.Fatalf("spa-client open: exit %d\n%s\nserver:\n%s", code, out, g.server.log())
	}
}

// sshSession is a session of ssh with the machine: each line comes back.
type sshSession struct {
	t     *testing.T
	to    io.Writer
	lines chan string
}

// ssh logs in to the machine through the gateway.
func (g *inner) ssh(t *testing.T) *sshSession {
	t.Helper()
	s, err := g.login(t, lab.Patience)
	if err != nil {
		t.Fatalf("%v\nserver:\n%s", err, g.server.log())
	}
	return s
}

func (g *inner) login(t *testing.T, within time.Duration) (*sshSession, error) {
	t.Helper()
	file := func(name string) string { return filepath.Join(g.files, name) }
	cmd := exec.Command("ssh", "-F", "none", "-p", "2222", "-b", g.alice, "-i", file("user"), "-o",
		"StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile="+file("known"), "-o", "BatchMode=yes", "-o",
		"GlobalKnownHostsFile=none", "root@"+g.at, "echo $SSH_CONNECTION; exec cat")
	var said bytes.Buffer
	cmd.Stderr = &said
	in := lab.Value(cmd.StdinPipe())(t)
	out := lab.Value(cmd.StdoutPipe())(t)
	lab.Must(t, g.client.Start(cmd))
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	s := &sshSession{t: t, to: in, lines: make(chan string, 9)}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	select {
	case line := <-s.lines:
		if !strings.Contains(line, g.behind+" 22") {
			t.Errorf("ssh reached %q, want %s", line, g.behind)
		}
	case <-time.After(within):
		cmd.Process.Kill()
		cmd.Wait()
		return nil, fmt.Errorf("ssh does not get in:\n%s", said.String())
	}
	return s, nil
}

// lives checks whether the session is alive.
func (s *sshSession) lives(want bool) {
	s.t.Helper()
	io.WriteString(s.to, "is anybody there?\n") // fails if ssh has noticed the end
	within := map[bool]time.Duration{true: lab.Patience, false: 3 * silence}[want]
	select {
	case <-s.lines:
		if !want {
			s.t.Error("the session is alive")
		}
	case <-time.After(within):
		if want {
			s.t.Error("the session is dead")
		}
	}
}

// shut checks that an address reaches neither the forwarded port nor the machine.
func (g *inner) shut(from, when string) {
	g.t.Helper()
	g.wantDark(from, net.JoinHostPort(g.at, "2222"), when)
	g.wantDark(from, net.JoinHostPort(g.behind, "22"), when)
}

// TestForward: a knock opens the way to a machine's sshd through a port of the gateway, for its sender alone, and the
// way ends like that to any other service. After teardown nothing of it is left.
func TestForward(t *testing.T) {
	for _, backend := range []string{"nftables", "iptables"} {
		for name, settings := range map[string][]string{"keep": nil, "cut and masquerade": {"service.inner.on_expiry=cut",
			"service.inner.masquerade=true"}} {
			for _, e := range endsOfBoth {
				t.Run(backend+" "+name+" "+e.name, func(t *testing.T) {
					t.Parallel()
					g := newInner(t, backend, settings...)
					g.over(e)
					g.start()
					if settings == nil { // masquerade is reported
						g.checks()
					}
					g.forwards(t, settings != nil)
					g.server.stop(syscall.SIGTERM)
					g.fails(0, "teardown", "--config", g.dir)
					g.nothingLeft()
				})
			}
		}
	}
}

// forwards checks the life of grants for the forwarded port.
func (g *inner) forwards(t *testing.T, cut bool) {
	t.Helper()
	g.shut(g.alice, "before a knock")
	g.knock("10m")
	s := g.ssh(t)
	s.lives(true)
	g.shut(g.stranger, "alice has a grant")
	g.wantDark(g.alice, net.JoinHostPort(g.behind, "22"), "around the forwarded port")

	out, code := g.run(g.client, "spa-client", "close", "inner", "--host", "gw", "--config", g.home, "--source",
		g.alice)
	if code != 0 {
		t.Fatalf("spa-client close: exit %d\n%s", code, out)
	}
	g.shut(g.alice, "closed")
	s.lives(!cut)

	whileGranted(t, func(d time.Duration) { g.knock(d.String()) }, func(within time.Duration) (err error) {
		s, err = g.login(t, within)
		return err
	})
	lab.Eventually(t, "the grant to end", func() bool { return len(g.grants()) == 0 })
	g.shut(g.alice, "expired")
	s.lives(!cut)

	g.knock("10m")
	s = g.ssh(t)
	g.fails(0, "revoke", "alice", "--cut", "--config", g.dir)
	g.shut(g.alice, "revoked")
	s.lives(false)
}

// checks runs check, which finds nothing wrong with the forwarded port.
func (g *inner) checks() {
	g.t.Helper()
	out, _ := g.run(g.host, "spa-server", "check", "--config", g.dir)
	if strings.Contains(out, "inner") || strings.Contains(out, "2222") {
		g.t.Errorf("check:\n%s", out)
	}
}

// nothingLeft checks that the kernel has nothing of the guard.
func (g *inner) nothingLeft() {
	g.t.Helper()
	left := ""
	for _, list := range [][]string{{"nft", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}} {
		out, _ := lab.Run(g.t, g.host, exec.Command(list[0], list[1:]...))
		left += out
	}
	if strings.Contains(left, "spa") || strings.Contains(left, "2222") {
		g.t.Errorf("left after teardown:\n%s", left)
	}
}
