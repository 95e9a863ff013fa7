package main

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// BenchmarkShared measures knocks at a gateway of a fleet: alone, and as one of two that share an address through etcd
// with one or three members, or with one that takes 50 ms to answer. Lone knocks come one at a time, from sealing to
// the receipt; the others 64 or 512 at a time, each from another client.
func BenchmarkShared(b *testing.B) {
	for _, store := range []struct {
		name  string
		etcds int
		later time.Duration
	}{{"alone", 0, 0}, {"etcd=1", 1, 0}, {"etcd=3", 3, 0}, {"etcd=1+50ms", 1, 25 * time.Millisecond}} {
		b.Run(store.name, func(b *testing.B) {
			o, senders := newBenchMember(b, store.etcds, store.later)
			b.Run("lone", func(b *testing.B) { benchLone(b, o, senders) })
			for _, n := range []int{64, 512} {
				b.Run(fmt.Sprint("at-once=", n), func(b *testing.B) { benchMany(b, o, senders, n) })
			}
		})
	}
}

// newBenchMember returns a gateway of a fleet with many clients, and what they knock with. With etcd it shares its
// address with another one.
func newBenchMember(b *testing.B, etcds int, later time.Duration) (*office, []spa.Sender) {
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(b, err)
	seal, gate := fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, keys.NewGateKey()
	clients := make([]*keys.Client, benchClients)
	for i := range clients {
		clients[i] = fleetClient(fmt.Sprintf("c%d", i), "ssh")
	}
	s := &together{t: b}
	if etcds > 0 {
		store := newEtcd(b, etcds)
		if later > 0 {
			for i, host := range store.hosts {
				store.hosts[i] = lab.Relay(b, host, later)
			}
		}
		s.connect = store.connect
	}
	for i := range min(1+etcds, 2) {
		g := newGateway(b)
		g.rewrite("server.toml", "live_nonces = .*", "live_nonces = 4096")
		g.rewrite("server.toml", "grants_per_hour = .*", "grants_per_hour = 10000000")
		name := fmt.Sprintf("lb%d", i+1)
		o := g.joinOffice(seal, gate, "fleet.gateway="+name)
		if o.name = name; etcds > 0 {
			o.site = "www"
		}
		g.serve(":22")
		o.publish(1, time.Now(), clients...)
		s.members = append(s.members, o)
		o.start()
		o.inForce(1)
		if etcds > 0 {
			s.connect(b, o)
		}
	}
	if etcds > 0 {
		s.ready()
	}
	senders := make([]spa.Sender, len(clients))
	for i, c := range clients {
		senders[i] = s.members[0].sender(c)
	}
	return s.members[0], senders
}

func benchLone(b *testing.B, o *office, senders []spa.Sender) {
	conn := o.socket("192.0.2.2")
	var buf [2048]byte
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		s, begin := senders[i%len(senders)], time.Now()
		packet := o.gateway.seal(request(), s)
		if _, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.2")); err != nil {
			b.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(lab.Patience))
		n, err := conn.Read(buf[:])
		if err != nil {
			b.Fatalf("knock %d: %v\n%s", i, err, o.server.log())
		}
		if receipt, err := spa.OpenReceipt(buf[:n], packet, s); err != nil || receipt.Status != spa.Granted {
			b.Fatalf("knock %d: %v %v", i, receipt.Status, err)
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(took[len(took)/2].Seconds()*1000, "p50-ms")
	b.ReportMetric(took[len(took)*99/100].Seconds()*1000, "p99-ms")
}

func benchMany(b *testing.B, o *office, senders []spa.Sender, atOnce int) {
	conn := o.socket("192.0.2.2")
	window := make(chan struct{}, atOnce)
	done := make(chan error, 1)
	go func() { done <- countReceipts(conn, b.N, window) }()
	b.ResetTimer()
	for i := range b.N {
		packet := o.gateway.seal(request(), senders[i%len(senders)])
		select {
		case window <- struct{}{}:
		case err := <-done:
			b.Fatalf("%v\n%s", err, o.server.log())
		}
		_, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.2"))
		lab.Must(b, err)
	}
	if err := <-done; err != nil {
		b.Fatalf("%v\n%s", err, o.server.log())
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "grants/s")
}
