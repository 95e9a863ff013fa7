package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
)

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, line)
}

// Write adds a line of a slog.TextHandler.
func (l *lines) Write(line []byte) (int, error) {
	l.add(string(line))
	return len(line), nil
}

func (l *lines) has(words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.list, func(line string) bool { return strings.Contains(line, words) })
}

func (l *lines) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.list {
		n += strings.Count(line, words)
	}
	return n
}

// A running is a server that runs on the loopback interface. Everything is real except the firewall and the sandbox.
type running struct {
	*bench
	said    *lines // the server's log
	systemd *lines // messages to systemd
	stop    context.CancelFunc
	ended   chan error
	knocks  *net.UDPConn
}

func newRunning(t *testing.T) *running {
	t.Helper()
	lab.NeedRoot(t)
	r := &running{bench: newSite(t, func(string) {}), said: &lines{}, systemd: &lines{}, ended: make(chan error, 1)}
	r.s.log = slog.New(witness{slog.DiscardHandler, r.said.add})
	r.s.sandbox = sandbox.State{Notes: []string{"a note of the sandbox"}}
	notify := filepath.Join(t.TempDir(), "notify")
	manager := lab.Value(net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: notify}))(t)
	t.Cleanup(func() { manager.Close() })
	go func() {
		b := make([]byte, 100)
		for {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			r.systemd.add(string(b[:n]))
		}
	}()
	t.Setenv("NOTIFY_SOCKET", notify)
	r.rewrite("interfaces = []", `interfaces = ["lo"]`)
	r.s.config.Capture.Interfaces = []string{"lo"}
	for _, open := range []func() error{r.s.openNotify, r.s.openWatcher, r.s.openControl, r.s.openSockets} {
		lab.Must(t, open())
	}
	r.knocks = lab.Value(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	t.Cleanup(func() { r.knocks.Close() })
	var ctx context.Context
	ctx, r.stop = context.WithCancel(t.Context())
	go func() { r.ended <- r.s.Run(ctx) }()
	t.Cleanup(r.stop)
	return r
}

// sends sends a datagram to the server, and returns it.
func (r *running) sends(data []byte) []byte {
	r.Helper()
	_, err := r.knocks.WriteToUDP(data, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1),
		Port: int(r.s.config.KnockPorts[0].Port)})
	lab.Must(r, err)
	return data
}

// receipt returns the receipt in the next datagram, opened as the sender of a packet.
func (r *running) receipt(packet []byte) spa.Receipt {
	r.Helper()
	b := make([]byte, 2*spa.MaxLen)
	r.knocks.SetReadDeadline(time.Now().Add(lab.Patience))
	n := lab.Value(r.knocks.Read(b))(r)
	receipt, err := spa.OpenReceipt(b[:n], packet, r.sender)
	if err != nil {
		r.Error(err)
	}
	return receipt
}

// commands runs each command, while alice holds a grant.
func (r *running) commands() {
	r.Helper()
	ask := func(request control.Request) (got []control.Reply, err error) {
		err = dialed(r, r.s).Ask(r.Context(), request, func(reply control.Reply) error {
			got = append(got, reply)
			return nil
		})
		return got, err
	}
	if got, err := ask(control.Request{Command: control.CommandStatus}); err != nil || len(got) != 1 ||
		got[0].Status.Name != "gw" || got[0].Status.Grants != 1 {
		r.Errorf("status: %+v, %v", got, err)
	}
	if got, err := ask(control.Request{Command: control.CommandGrants}); err != nil || len(got) != 1 ||
		got[0].Grant.Client != "alice" {
		r.Errorf("grants: %+v, %v", got, err)
	}
	if got, err := ask(control.Request{Command: control.CommandReload}); err != nil || len(got) != 1 ||
		got[0].Reloaded == nil {
		r.Errorf("reload: %+v, %v", got, err)
	}
	if got, err := ask(control.Request{Command: control.CommandRevoke,
		Source: netip.MustParseAddr("192.0.2.9")}); err == nil || len(got) != 0 {
		r.Errorf("revoke of nothing: %+v, %v", got, err)
	}
	if got, err := ask(control.Request{Command: "other"}); err == nil || len(got) != 0 || !strings.Contains(err.Error(),
		"unknown command") {
		r.Errorf("a command that there is not: %+v, %v", got, err)
	}
	enough, watching, packet := errors.New("enough"), dialed(r, r.s), make(chan []byte, 1)
	go func() {
		for !r.s.feed.Watched() {
			time.Sleep(time.Millisecond)
		}
		packet <- r.sends(sealed(r, r.sender))
	}()
	err := watching.Ask(r.Context(), control.Request{Command: control.CommandWatch}, func(reply control.Reply) error {
		if reply.Decision == nil || reply.Decision.Verdict != "granted" {
			r.Errorf("watch: %+v", reply)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		r.Errorf("watch: %v", err)
	}
	r.receipt(<-packet)
}

// TestRun: the server reads packets, answers only spent ones, follows its files, and accepts commands until it is
// stopped; it notifies systemd.
func TestRun(t *testing.T) {
	r := newRunning(t)
	lab.Eventually(t, "READY", func() bool { return r.systemd.has("READY=1") })
	for _, line := range []string{"ready", "a note of the sandbox"} {
		if !r.said.has(line) {
			t.Errorf("the log has no line %q", line)
		}
	}
	r.sends(make([]byte, 200))
	packet := r.sends(sealed(t, r.sender))
	r.sends(packet) // a copy
	if got := r.receipt(packet); got.Status != spa.Granted {
		t.Errorf("the receipt says: %v", got.Status)
	}
	packet = r.sends(sealed(t, r.sender))
	if got := r.receipt(packet); got.Status != spa.Granted {
		t.Errorf("the next receipt says %v", got.Status)
	}
	r.commands()
	r.write(func(c *keys.Client) { c.Allow = []string{"web"} })
	lab.Eventually(t, "the grant to end", func() bool { return len(r.s.firewall.Grants(time.Now())) == 0 })
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("it was asked to stop, and ends with: %v", err)
	}
	lab.Eventually(t, "STOPPING", func() bool { return r.systemd.has("STOPPING=1") })
	if !r.said.has("stopped") || r.said.has("could not notify") {
		t.Errorf("the log has %q", r.said.list)
	}
	_, reading := r.s.sniffer.Read()
	_, telling := r.s.manager.Write([]byte("x"))
	for what, err := range map[string]error{
		"the sniffer": reading, "systemd's socket": telling, "the responder": r.s.responder.Send(arriving(nil), nil, false),
		"the watcher": r.s.watcher.Add(t.TempDir()),
	} {
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, fsnotify.ErrClosed) {
			t.Errorf("%s is open: %v", what, err)
		}
	}
	if _, err := os.Lstat(r.s.inState(control.SocketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is there: %v", err)
	}
}

// TestRunEnds: if the client files can no longer be watched, the server ends with the reason.
func TestRunEnds(t *testing.T) {
	r := newRunning(t)
	lab.Eventually(t, "READY", func() bool { return r.systemd.has("READY=1") })
	lab.Must(t, os.Rename(r.s.clientsDir(), r.s.clientsDir()+".old"))
	select {
	case err := <-r.ended:
		if err == nil || !strings.Contains(err.Error(), "was moved away") {
			t.Errorf("it ends with %v, want that its files were moved away", err)
		}
	case <-time.After(lab.Patience):
		t.Error("it keeps running")
	}
	if r.said.has("stopped") {
		t.Error("it reports that it was asked to stop")
	}
}

// TestAnswered: a spent packet is answered if receipts are on, and a failed send is logged.
func TestAnswered(t *testing.T) {
	lab.NeedRoot(t)
	b, said := newBench(t), &lines{}
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	var err error
	b.s.responder, err = capture.NewResponder(0)
	lab.Must(t, err)
	t.Cleanup(func() { b.s.responder.Close() })
	client := lab.Value(net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	t.Cleanup(func() { client.Close() })
	from := client.LocalAddr().(*net.UDPAddr).AddrPort()
	take := func(p capture.Packet) []byte {
		p.From, p.To = from, netip.AddrPortFrom(from.Addr(), 62201)
		b.s.process(context.Background(), p)
		return p.Data
	}
	noise := arriving(make([]byte, 200))
	first, last := b.packet(0), b.packet(0)
	b.arrive(b.packet(0))
	b.event.Receipt = spa.Receipt{}
	for _, p := range []capture.Packet{noise, first, first} {
		take(p)
	}
	b.s.config.Receipts = false
	take(b.packet(0))
	b.s.config.Receipts = true
	first.From, first.To = from, netip.AddrPortFrom(from.Addr(), 62201)
	b.s.answer(b.s.config, first, b.event) // there is no receipt
	if !said.has("could not send a receipt") {
		t.Error("that there is no receipt is not said")
	}
	said.list = nil
	take(last)
	answer := make([]byte, 2*spa.MaxLen)
	for i, p := range []capture.Packet{first, last} { // loopback delivers before a send returns
		client.SetReadDeadline(time.Now().Add(lab.Patience))
		n := lab.Value(client.Read(answer))(t)
		if got, err := spa.OpenReceipt(answer[:n], p.Data, b.sender); err != nil || got.Status != spa.Granted {
			t.Errorf("answer %d: %v, %v", i, got.Status, err)
		}
	}
	if said.has("could not send a receipt") {
		t.Error("the log reports that a receipt could not be sent")
	}
	b.s.responder.Close()
	take(b.packet(0))
	if !said.has("could not send a receipt") {
		t.Error("that a receipt could not be sent is not said")
	}
}

// TestNoSystemd: a server that was not started as a service runs as well, and so does one whose service manager is gone
// or goes away.
func TestNoSystemd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	for _, test := range []struct{ name, socket, said string }{
		{"none", "", ""}, {"gone", path, "cannot notify systemd"}, {"goes away", path, "could not notify systemd"},
	} {
		s, _ := newLine(t)
		said := &lines{}
		s.log = slog.New(witness{slog.DiscardHandler, said.add})
		t.Setenv("NOTIFY_SOCKET", test.socket)
		leave := func() error { return nil }
		if test.name == "goes away" {
			manager := lab.Value(net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path}))(t)
			leave = manager.Close
		}
		if err := errors.Join(s.openNotify(), leave()); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		s.notify(notifyReady)
		if len(said.list) > 1 || said.has(test.said) != (test.said != "") {
			t.Errorf("%s: the log has %q", test.name, said.list)
		}
		s.Close()
	}
}
