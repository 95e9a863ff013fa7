package main

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// wide is how many services together have as many ports as a client may hold.
const wide, widePorts = 8, 1024

// newWideGateway returns a running gateway with wide services beside ssh.
func newWideGateway(b *testing.B) (*gateway, *keys.Profile) {
	g := newGateway(b)
	for i := range wide {
		low := 10000 + i*widePorts
		g.add(fmt.Sprint("wide", i), fmt.Sprintf("ports = [\"tcp/%d-%d\"]", low, low+widePorts-1))
	}
	return g, g.profile()
}

// insider makes a client that may open all wide services.
func (g *gateway) insider(p *keys.Profile, name string) spa.Sender {
	c := &keys.Client{Name: name, ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	for i := range wide {
		c.Allow = append(c.Allow, fmt.Sprintf("wide%d", i))
	}
	lab.Must(g.t, keys.WriteClient(filepath.Join(g.dir, "clients"), c, true))
	return spa.Sender{Server: p.ServerID, Gate: p.Gate, ID: c.ID, Key: c.Key}
}

func wideRequest() spa.Request {
	r := request()
	r.Services = nil
	for i := range wide {
		r.Services = append(r.Services, service.Service{Name: fmt.Sprintf("wide%d", i)})
	}
	return r
}

// BenchmarkKnockBesideWideGrants measures one knock at a time while another client, new each time, sends all at once
// what its limits allow: 125 requests for eight services of 1,024 ports each.
func BenchmarkKnockBesideWideGrants(b *testing.B) {
	g, profile := newWideGateway(b)
	g.rewrite("server.toml", "live_nonces = .*", "live_nonces = 4096")
	const insiders = 8
	var from []spa.Sender
	for i := range insiders {
		from = append(from, g.insider(profile, fmt.Sprint("mallory", i)))
	}
	var others []spa.Sender
	for i := range 200 {
		others = append(others, g.insider(profile, fmt.Sprint("c", i)))
	}
	g.start()
	var took []time.Duration
	for i := range min(b.N, insiders) {
		conn := g.socket(fmt.Sprintf("192.0.2.%d", 3))
		done := make(chan error, 1)
		window := make(chan struct{}, 125)
		for range 125 {
			packet := g.seal(wideRequest(), from[i])
			window <- struct{}{}
			_, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.3"))
			lab.Must(b, err)
		}
		start := time.Now()
		go func() { done <- countReceipts(conn, 125, window) }()
		for over := false; !over; {
			select {
			case err := <-done:
				if err != nil {
					b.Fatalf("%v\n%s", err, g.server.log())
				}
				over = true
			default:
				took = append(took, g.knockTakes(others[len(took)%len(others)]))
				time.Sleep(2 * time.Millisecond)
			}
		}
		b.ReportMetric(time.Since(start).Seconds(), "s/burst")
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(1), "max-ms")
	b.ReportMetric(float64(len(took)), "knocks")
}

// knockTakes returns how long a knock takes until its receipt.
func (g *gateway) knockTakes(s spa.Sender) time.Duration {
	var conn *net.UDPConn = g.socket("192.0.2.2")
	defer conn.Close()
	packet := g.seal(request(), s)
	start := time.Now()
	if _, err := conn.WriteToUDPAddrPort(packet, knockAddr("192.0.2.2")); err != nil {
		g.t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(lab.Patience))
	var buf [2048]byte
	n, err := conn.Read(buf[:])
	if err != nil {
		g.t.Fatalf("%v\n%s\n%s", err, g.must("spa-server", "status", "--config", g.dir), g.server.log())
	}
	took := time.Since(start)
	if receipt, err := spa.OpenReceipt(buf[:n], packet, s); err != nil || receipt.Status != spa.Granted {
		g.t.Fatalf("%v %v", receipt.Status, err)
	}
	return took
}
