package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// taped is a packet of a capture file.
type taped struct {
	at   time.Time
	from string
	data []byte
}

// tape writes packets to the gateway's knock port into a capture file.
func tape(t testing.TB, packets ...taped) string {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	lab.Must(t, w.WriteFileHeader(65536, layers.LinkTypeRaw))
	for _, p := range packets {
		frame := gopacket.NewSerializeBuffer()
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: netip.MustParseAddr(p.from).AsSlice(),
			DstIP: []byte{192, 0, 2, 1}}
		udp := &layers.UDP{SrcPort: 40000, DstPort: 62201}
		lab.Must(t, udp.SetNetworkLayerForChecksum(ip))
		lab.Must(t, gopacket.SerializeLayers(frame, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip,
			udp, gopacket.Payload(p.data)))
		data := frame.Bytes()
		lab.Must(t, w.WritePacket(gopacket.CaptureInfo{Timestamp: p.at, CaptureLength: len(data), Length: len(data)},
			data))
	}
	path := filepath.Join(t.TempDir(), "knocks.pcap")
	lab.Must(t, os.WriteFile(path, b.Bytes(), 0o600))
	return path
}

func decisions(t testing.TB, out string) []control.Decision {
	t.Helper()
	var ds []control.Decision
	for line := range strings.Lines(out) {
		var d control.Decision
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ds = append(ds, d)
	}
	return ds
}

func wanting(name string) spa.Request {
	r := request()
	r.Services = []service.Service{{Name: name}}
	return r
}

// TestInspect: what would have been decided last week, at the packets' own times, without a server, a firewall or any
// privilege.
func TestInspect(t *testing.T) {
	g := newGateway(t)
	alice, bob, carol := sender(g.profile()), sender(g.enrol("bob", "web")), sender(g.enrol("carol", "web"))
	g.must("spa-keygen", "set", "carol", "recovery=1", "--config", g.dir)
	g.set("service.ssh", "when", `["mon-fri 08:00-18:00"]`)
	g.set("", "zone", `"UTC"`)
	monday := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	sunday := monday.Add(-24 * time.Hour)
	knock := func(at time.Time, s spa.Sender, service string) []byte {
		r := wanting(service)
		r.Time = at
		return g.seal(r, s)
	}
	spent := knock(monday, alice, "ssh")
	file := tape(t,
		taped{sunday, "192.0.2.2", knock(sunday, alice, "ssh")},
		taped{monday, "192.0.2.2", spent},
		taped{monday.Add(time.Second), "192.0.2.3", spent},
		taped{monday.Add(time.Second), "192.0.2.9", make([]byte, 200)},
		taped{monday.Add(2 * time.Second), "192.0.2.2", knock(monday.Add(-time.Minute), alice, "ssh")},
		taped{monday.Add(3 * time.Second), "192.0.2.4", knock(monday, bob, "ssh")},
		taped{monday.Add(4 * time.Second), "192.0.2.4", knock(monday, bob, "web")},
		taped{monday.Add(4 * time.Second), "192.0.2.5", knock(monday, carol, "web")},
		taped{monday.Add(5 * time.Second), "192.0.2.9", make([]byte, 200)},
		taped{monday.Add(5 * time.Second), "192.0.2.9", make([]byte, 20)},
	)
	before := g.files()
	ds := decisions(t, g.must("spa-server", "inspect", file, "--json", "--config", g.dir))
	want := []struct{ verdict, client, reason string }{
		{"denied", "alice", "hours"},
		{"granted", "alice", ""},
		{"unspent", "alice", "spent"},
		{"unopened", "alice", "stale"},
		{"denied", "bob", "not allowed"},
		{"granted", "bob", ""},
		{"denied", "carol", "only a running server counts"},
		{"unopened", "", "gate"},
	}
	if len(ds) != len(want) {
		t.Fatalf("got %d decisions, want %d: %+v", len(ds), len(want), ds)
	}
	for i, w := range want {
		if d := ds[i]; d.Verdict != w.verdict || d.Client != w.client || !strings.Contains(d.Reason, w.reason) {
			t.Errorf("decision %d: got %+v, want %+v", i, d, w)
		}
	}
	if d := ds[1]; !d.Time.Equal(monday) || len(d.Until) != 1 || !d.Until[0].Equal(monday.Add(30*time.Second)) ||
		d.From.Addr() != lab2 {
		t.Errorf("granted: %+v, want it at the packet's own time", d)
	}
	if d := ds[2]; !d.Copied {
		t.Errorf("%+v, want it called a copy", d)
	}
	if d := ds[7]; d.Packets != 2 || d.From.IsValid() {
		t.Errorf("noise: %+v, want two packets of nobody", d)
	}
	if after := g.files(); after != before {
		t.Errorf("the gateway's files are others now:\n%s\n%s", before, after)
	}
}

// files returns the names, sizes and times of all of the gateway's files.
func (g *gateway) files() string {
	g.t.Helper()
	var b strings.Builder
	lab.Must(g.t, filepath.Walk(g.dir, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			b.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	}))
	return b.String()
}

// TestInspectAgrees: inspect decides about the capture of packets what the running server decided about them.
func TestInspectAgrees(t *testing.T) {
	g := newGateway(t)
	g.start()
	alice, stranger := sender(g.profile()), sender(g.profile())
	stranger.Key = keys.NewKey()
	opening := wanting("ssh")
	opening.For = 10 * time.Minute // otherwise its end would be reported too
	packets := [][]byte{g.seal(opening, alice), g.seal(wanting("web"), alice), g.seal(wanting("ssh"), stranger)}
	packets = append(packets, packets[0])
	w := g.watch()
	var tapes []taped
	for i, packet := range packets {
		tapes = append(tapes, taped{time.Now(), "192.0.2.2", packet})
		g.send("192.0.2.2", packet)
		lab.Eventually(t, "the packet to be decided", func() bool { return len(w.decisions()) > i })
	}
	said := func(ds []control.Decision) []string {
		var texts []string
		for _, d := range ds {
			texts = append(texts, strings.Join([]string{d.Verdict, d.Client, d.Reason}, " "))
		}
		slices.Sort(texts) // noise is reported late
		return texts
	}
	got := said(decisions(t, g.must("spa-server", "inspect", tape(t, tapes...), "--json", "--config", g.dir)))
	if want := said(w.decisions()); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestInspectText: lines with their date, from standard input; and a file that is not a capture.
func TestInspectText(t *testing.T) {
	g := newGateway(t)
	at := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	r := request()
	r.Time = at
	file := lab.Value(os.ReadFile(tape(t, taped{at, "192.0.2.2", g.seal(r, sender(g.profile()))})))(t)
	inspect := func(in []byte) (string, string, int) {
		cmd := g.command("spa-server", "inspect", "-", "--config", g.dir)
		cmd.Env = append(os.Environ(), "TZ=UTC")
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &out, &errs
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	out, errs, code := inspect(file)
	if code != 0 || out != "2026-03-02 12:00:00 granted alice ssh from 192.0.2.2:40000 until 12:00:30\n" ||
		!strings.Contains(errs, "1 of 1 packets have a knock's size") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	out, errs, code = inspect(append(file, 1, 2, 3))
	if code != 1 || !strings.Contains(out, "granted alice") || !strings.Contains(errs, "-: record 2: unexpected EOF") {
		t.Errorf("cut short: exit %d, %q, %q", code, out, errs)
	}
	if _, errs, code = inspect([]byte("no capture at all")); code != 1 ||
		!strings.Contains(errs, "neither a pcap nor a pcapng file") {
		t.Errorf("no capture: exit %d, %q", code, errs)
	}
}

// TestInspectLeavesNothing: even if no one reads its output, which ends it at once.
func TestInspectLeavesNothing(t *testing.T) {
	g := newGateway(t)
	r := request()
	r.Time = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	cmd := g.command("spa-server", "inspect", tape(t, taped{r.Time, "192.0.2.2", g.seal(r, sender(g.profile()))}),
		"--config", g.dir)
	scratch := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	unread, out, err := os.Pipe()
	lab.Must(t, err)
	unread.Close()
	defer out.Close()
	cmd.Stdout = out
	if err := cmd.Run(); err == nil {
		t.Error("it succeeded, although nobody read its output")
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestInspectInterrupted: reading a pipe without a writer can be interrupted.
func TestInspectInterrupted(t *testing.T) {
	g := newGateway(t)
	pipe := filepath.Join(t.TempDir(), "pipe")
	lab.Must(t, syscall.Mkfifo(pipe, 0o600))
	cmd := g.command("spa-server", "inspect", pipe, "--config", g.dir)
	lab.Must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	lab.Eventually(t, "the pipe to be opened", func() bool {
		end, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			t.Cleanup(func() { end.Close() })
		}
		return err == nil
	})
	lab.Must(t, cmd.Process.Signal(os.Interrupt))
	select {
	case <-ended:
	case <-time.After(lab.Patience):
		cmd.Process.Kill()
		t.Error("it keeps running")
	}
}
