package main

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
)

const benchClients = 1000

// newBenchGateway returns a running gateway with many clients and raised limits.
func newBenchGateway(b *testing.B) (*gateway, []spa.Sender) {
	g := newGateway(b)
	g.rewrite("server.toml", "live_nonces = .*", "live_nonces = 4096")
	g.rewrite("server.toml", "grants_per_hour = .*", "grants_per_hour = 10000000")
	profile := g.profile()
	senders := make([]spa.Sender, benchClients)
	for i := range senders {
		c := &keys.Client{Name: fmt.Sprintf("c%d", i), ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
		lab.Must(b, keys.WriteClient(filepath.Join(g.dir, "clients"), c, true))
		senders[i] = spa.Sender{Server: profile.ServerID, Gate: profile.Gate, ID: c.ID, Key: c.Key}
	}
	g.serve(":22")
	g.start()
	return g, senders
}

// BenchmarkKnock measures one knock at a time: from sealing to the receipt, over a veth pair.
func BenchmarkKnock(b *testing.B) {
	g, senders := newBenchGateway(b)
	conn := g.socket("192.0.2.2")
	var buf [2048]byte
	for i := 0; b.Loop(); i++ {
		s := senders[i%len(senders)]
		packet := g.seal(request(), s)
		if _, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.2")); err != nil {
			b.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(lab.Patience))
		n, err := conn.Read(buf[:])
		if err != nil {
			b.Fatalf("knock %d: %v\n%s", i, err, g.server.log())
		}
		if receipt, err := spa.OpenReceipt(buf[:n], packet, s); err != nil || receipt.Status != spa.Granted {
			b.Fatalf("knock %d: %v %v", i, receipt.Status, err)
		}
	}
}

// BenchmarkGrantsPerSecond sends as many knocks as the gateway takes, 64 at a time: each is a grant in the kernel, a
// line in the audit log, and a receipt. The metric is receipts per second.
func BenchmarkGrantsPerSecond(b *testing.B) {
	g, senders := newBenchGateway(b)
	conn := g.socket("192.0.2.2")
	window := make(chan struct{}, 64)
	done := make(chan error, 1)
	go func() { done <- countReceipts(conn, b.N, window) }()
	b.ResetTimer()
	for i := range b.N {
		packet := g.seal(request(), senders[i%len(senders)])
		select {
		case window <- struct{}{}:
		case err := <-done:
			b.Fatalf("%v\n%s", err, g.server.log())
		}
		_, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.2"))
		lab.Must(b, err)
	}
	if err := <-done; err != nil {
		b.Fatalf("%v\n%s", err, g.server.log())
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "grants/s")
}

func countReceipts(conn *net.UDPConn, n int, window <-chan struct{}) error {
	var buf [2048]byte
	for i := range n {
		conn.SetReadDeadline(time.Now().Add(lab.Patience))
		if _, err := conn.Read(buf[:]); err != nil {
			return fmt.Errorf("after %d of %d receipts: %w", i, n, err)
		}
		<-window
	}
	return nil
}
