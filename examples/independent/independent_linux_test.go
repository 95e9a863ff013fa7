// Package independent tests a client that shares no code with the rest: knock.py, written from spa/PROTOCOL.md alone.
// It shows that the specification is sufficient.
package independent

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// python returns a command that runs one of the programs here.
func python(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(lab.NeedProgram(t, "python3", "apt-get install python3"), args...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	return cmd
}

// TestVectors: knock.py seals every packet of the vectors byte for byte, parses every receipt and token, and refuses
// malformed and forged ones.
func TestVectors(t *testing.T) {
	const folder = "../../spa/testdata/vectors"
	files, err := filepath.Glob(filepath.Join(folder, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	out, err := python(t, "vectors.py", folder).CombinedOutput()
	if err != nil {
		t.Fatalf("vectors.py: %v\n%s", err, out)
	}
	said := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, verdict, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		said[name] = verdict
	}
	for _, file := range files {
		if name := filepath.Base(file); said[name] != "ok" {
			t.Errorf("%s: %q", name, said[name])
		}
	}
	if len(said) != len(files) {
		t.Errorf("%d vectors of %d", len(said), len(files))
	}
}

// server answers a client on a port of this machine.
type server struct {
	conn   *net.UDPConn
	id     spa.Identity
	client keys.Client
	token  string
}

func newServer(t *testing.T) *server {
	t.Helper()
	conn := lab.Value(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	t.Cleanup(func() { conn.Close() })
	p := keys.Profile{Name: "gw", Client: "alice", Address: conn.LocalAddr().String(), KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(), ID: keys.NewID(), Key: keys.NewKey(), Receipts: true}
	return &server{conn: conn, token: p.Token(), client: keys.Client{Name: "alice", ID: p.ID, Key: p.Key},
		id: spa.Identity{Server: p.ServerID, Gates: []spa.Gate{{Key: p.Gate}}, Window: 30 * time.Second}}
}

// Lookup knows one client.
func (s *server) Lookup(id keys.ID) (keys.Credential, bool) {
	return keys.Credential{Client: s.client, ID: id, Key: s.client.Key}, id == s.client.ID
}

// answer ignores two packets, and answers the third after datagrams that the client must ignore.
func (s *server) answer(r spa.Receipt) error {
	buf := make([]byte, 512)
	var last [16]byte
	for tries := 1; ; tries++ {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		k, err := spa.Open(buf[:n], &s.id, s, time.Now())
		if err != nil {
			return err
		}
		if tries > 1 && k.Request.ID != last {
			return fmt.Errorf("try %d has another request id", tries)
		}
		if last = k.Request.ID; tries < 3 {
			continue
		}
		r.Time, r.Source = k.Time, from.Addr()
		receipt, err := spa.SealReceipt(r, &k, s.id.Server)
		for _, datagram := range [][]byte{nil, buf[:n], make([]byte, n), receipt} {
			if _, err := s.conn.WriteToUDPAddrPort(datagram, from); err != nil {
				return err
			}
		}
		return err
	}
}

// run knocks and returns the output and the exit status.
func (s *server) run(t *testing.T, args ...string) (string, int) {
	t.Helper()
	cmd := python(t, append([]string{"knock.py", "--timeout", "20", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(s.token)
	out, _ := cmd.CombinedOutput()
	if strings.Contains(string(out), s.token[40:60]) {
		t.Error("the output shows the token")
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestKnock: knock.py sends packets until the receipt comes, ignores everything else, and reports the outcome.
func TestKnock(t *testing.T) {
	ssh := spa.Granting{For: time.Minute, Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}}
	for name, c := range map[string]struct {
		receipt spa.Receipt
		args    []string
		status  int
		output  string
	}{
		"granted": {spa.Receipt{Status: spa.Granted, Services: []spa.Granting{ssh}}, nil, 0,
			"granted ssh for 127.0.0.1 until 20"},
		"closed":         {spa.Receipt{Status: spa.Closed}, []string{"--close"}, 0, "closed ssh for 127.0.0.1"},
		"refused":        {spa.Receipt{Status: spa.ReasonNotAllowed}, nil, 3, "refused: status 18"},
		"a later reason": {spa.Receipt{Status: 255}, nil, 3, "refused: status 255"},
		"too many services": {spa.Receipt{Status: spa.Granted, Services: []spa.Granting{ssh, ssh}}, nil, 1,
			"knock.py: the server's receipt does not fit"},
		"another kind": {spa.Receipt{Status: spa.Closed}, nil, 1, "knock.py: the server's receipt does not fit"},
		"the stated address": {spa.Receipt{Status: spa.Closed}, []string{"--close", "--source", "127.0.0.1"}, 0,
			"closed ssh for 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			answered := make(chan error, 1)
			go func() { answered <- s.answer(c.receipt) }()
			out, status := s.run(t, append([]string{"ssh"}, c.args...)...)
			s.conn.Close()
			if err := <-answered; err != nil {
				t.Error(err)
			}
			if status != c.status || !strings.HasPrefix(out, c.output) {
				t.Errorf("exit status %d, want %d; output %q, want %q", status, c.status, out, c.output)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	s := newServer(t)
	if out, status := s.run(t, "ssh", "--timeout", "0.2"); status != 4 {
		t.Errorf("nobody answers: exit status %d\n%s", status, out)
	}
	if out, status := s.run(t, "ssh", "--source", "2001:db8::1"); status != 1 {
		t.Errorf("the other family: exit status %d\n%s", status, out)
	}
}

func TestMisuse(t *testing.T) {
	s := newServer(t)
	for _, args := range []string{"", "SSH", "ssh ssh", "tcp/0", "tcp/22-23", "ssh --for -1",
		"ssh --for 4294967296", "ssh --for 1 --close",
		"ssh --source 0.0.0.0", "ssh --source fe80::1%lo", "ssh --source ff02::1", "ssh --source ::ffff:192.0.2.1",
		strings.Repeat("a", 32) + " " + strings.Repeat("b", 15)} {
		if out, status := s.run(t, strings.Fields(args)...); status != 2 {
			t.Errorf("%q: exit status %d\n%s", args, status, out)
		}
	}
	s.token = s.token[:40] + " " + s.token[40:]
	if out, status := s.run(t, "ssh"); status != 1 {
		t.Errorf("a broken token: exit status %d\n%s", status, out)
	}
}

// TestServer: knock.py opens, is refused, and closes, with a real server.
func TestServer(t *testing.T) {
	lab.NeedProgram(t, "python3", "apt-get install python3")
	g := lab.NewGateway(t, lab.Programs(t), "ssh=tcp/22", "web=tcp/80")
	token := filepath.Join(t.TempDir(), "token")
	lab.Must(t, os.WriteFile(token, []byte(g.Enrol("other", "ssh")), 0o600))
	echo := lab.Value(lab.EchoServer(g.Host, ":22"))(t)
	defer echo.Close()
	g.Start()
	knock := func(want int, args ...string) {
		t.Helper()
		cmd := python(t, append([]string{"knock.py", "--timeout", "60", token}, args...)...)
		if out, status := lab.Run(t, g.Client, cmd); status != want {
			t.Errorf("%v: exit status %d, want %d\n%s\n%s", args, status, want, out, g.Log())
		}
	}
	open := func(within time.Duration) bool {
		conn, err := lab.Dial(g.Client, "", "192.0.2.1:22", within)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if open(300 * time.Millisecond) {
		t.Error("the port is open before a knock")
	}
	knock(0, "ssh", "--source", "192.0.2.2", "--for", "60000")
	if !open(lab.Patience) {
		t.Error("the port is shut after a grant")
	}
	knock(3, "web")
	knock(0, "ssh", "--close")
	if open(300 * time.Millisecond) {
		t.Error("the port is open after it was closed")
	}
}
