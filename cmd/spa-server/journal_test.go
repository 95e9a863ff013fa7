package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/lab"
)

// fakeJournal receives messages in place of systemd-journald.
type fakeJournal struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

// newFakeJournal returns a journal that receives messages, and the directory that a program must see as /run.
func newFakeJournal(t *testing.T) (j *fakeJournal, run string) {
	t.Helper()
	run = t.TempDir()
	dir := filepath.Join(run, "systemd", "journal")
	lab.Must(t, os.MkdirAll(dir, 0o755))
	j = &fakeJournal{t: t, path: filepath.Join(dir, "socket")}
	j.start()
	t.Cleanup(func() { j.conn.Close() })
	return j, run
}

func (j *fakeJournal) start() {
	j.t.Helper()
	var err error
	before := j.path + ".new" // a server that tried the socket before its mode was set would count the line as lost
	if j.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: before}); err != nil {
		j.t.Fatal(err)
	}
	lab.Must(j.t, os.Chmod(before, 0o666)) // as systemd-journald.socket has it
	lab.Must(j.t, os.Rename(before, j.path))
}

// stop removes the socket.
func (j *fakeJournal) stop() {
	j.t.Helper()
	j.conn.Close()
	os.Remove(j.path)
}

// wantMessage waits for a message that has all these fields.
func (j *fakeJournal) wantMessage(fields ...string) {
	j.t.Helper()
	j.conn.SetReadDeadline(time.Now().Add(lab.Patience))
	var buf [1 << 16]byte
	for {
		n, err := j.conn.Read(buf[:])
		if err != nil {
			j.t.Fatalf("no message with %q: %v", fields, err)
		}
		message, all := "\n"+string(buf[:n]), true
		for _, field := range fields {
			all = all && strings.Contains(message, "\n"+field+"\n")
		}
		if all {
			return
		}
	}
}

// TestAuditJournal: decisions are in systemd's journal, even after the journal was restarted with a new socket.
func TestAuditJournal(t *testing.T) {
	g := newGateway(t)
	journal, run := newFakeJournal(t)
	os.Remove(filepath.Join(g.dir, "audit.jsonl"))
	g.rewrite("server.toml", `file = "audit.jsonl"`, `file = "journal"`)
	g.launch(lab.See(g.command("spa-server", "run", "--config", g.dir), map[string]string{"/run": run}))
	lab.Eventually(t, "the server to be ready", func() bool { return strings.Contains(g.server.log(), "msg=ready") })
	alice := sender(g.profile())
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	journal.wantMessage("SPA_VERDICT=granted", "SPA_CLIENT=alice", "SPA_ADDRESS=192.0.2.2", "SPA_SERVICE=ssh",
		"PRIORITY=6", "SPA_GATEWAY=gw", "SYSLOG_IDENTIFIER=spa-server")
	web := request()
	web.Services[0].Name = "web"
	g.wantReceipt("192.0.2.2", g.seal(web, alice), alice, spa.ReasonNotAllowed)
	journal.wantMessage("SPA_VERDICT=denied", "PRIORITY=4", "SPA_SERVICE=web")
	journal.stop()
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted) // the line does not wait for the journal
	journal.start()
	journal.wantMessage("SPA_VERDICT=granted")
	if status := g.status(); status.Audit.File != "journal" || status.Audit.Lost > 0 {
		t.Errorf("got %+v", status.Audit)
	}
	if _, err := os.Stat(filepath.Join(g.dir, "audit.jsonl")); err == nil {
		t.Error("a file was written too")
	}
}

// TestNoJournal: if systemd has no journal, the server still guards and grants, reports it, and counts the lost lines.
func TestNoJournal(t *testing.T) {
	g := newGateway(t)
	g.rewrite("server.toml", `file = "audit.jsonl"`, `file = "journal"`)
	g.launch(lab.See(g.command("spa-server", "run", "--config", g.dir), map[string]string{"/run": t.TempDir()}))
	lab.Eventually(t, "the server to be ready", func() bool { return strings.Contains(g.server.log(), "msg=ready") })
	wantSaid(t, g.server.log(), "systemd's journal does not accept messages")
	g.mustOpen()
	lab.Eventually(t, "the lost line to be counted", func() bool { return g.status().Audit.Lost > 0 })
}
