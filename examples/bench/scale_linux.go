package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sallyport/spa"
)

// fresh returns a new directory's path.
func (b *bench) fresh(name string) string {
	b.made++
	return filepath.Join(b.dir, name+strconv.Itoa(b.made))
}

// begin starts a program in a new network, and returns how long it took to start.
func (b *bench) begin(p program, delay time.Duration) (*field, time.Duration, error) {
	n, err := newNetwork(delay)
	if err != nil {
		return nil, 0, err
	}
	took, err := p.start(n)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", p.name(), err), p.stop(), n.close())
	}
	return &field{p, n}, took, nil
}

// costs measures servers with many clients.
func (b *bench) costs() error {
	plot := b.results.plot(&chart{file: "clients.png", title: "The server's CPU time for a knock", x: "clients", y: "ms",
		logX: true, logY: true})
	for _, n := range b.clients {
		if err := b.cost(b.sallyport(ours, n), n, b.sizes.cost, plot); err != nil {
			return err
		}
		if !b.peers {
			continue
		}
		if err := b.cost(&fwknop{dir: b.fresh("fwknop"), clients: n}, n, b.peerCost, plot); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) cost(p program, clients, knocks int, plot *chart) (err error) {
	f, start, err := b.begin(p, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.stop(), f.net.close()) }()
	before, err := f.use()
	if err != nil {
		return err
	}
	tried, took, err := b.oneByOne(f, knocks, stormFor)
	if err != nil {
		return err
	}
	after, err := f.use()
	if err != nil {
		return err
	}
	cpu := after.since(before).cpu / time.Duration(tried)
	b.say("clients: %d: %s: start %v, a knock %v of CPU", clients, p.name(), start.Round(ms), cpu)
	b.results.put(fmt.Sprintf("start with clients: %d; memory after it", clients), p.name(),
		fmt.Sprintf("%s ms, %s", millis(start), megabytes(before.memory)))
	b.results.put(fmt.Sprintf("knock with clients: %d: server's CPU, ms; knocks that open; p50 / p90 / p99, ms", clients),
		p.name(), fmt.Sprintf("%s; %s", millis(cpu), took.of(tried)))
	plot.add(p.name(), float64(clients), cpu.Seconds()*1000)
	return nil
}

// outstanding is how many knocks of the crowd are unanswered at most.
const outstanding = 64

// grants measures how many grants a second the server keeps up, with receipts and the audit log.
func (b *bench) grants() (err error) {
	s := b.sallyport(ours, b.crowd+b.devices)
	f, _, err := b.begin(s, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.stop(), f.net.close()) }()
	senders, err := s.crowd()
	if err != nil {
		return err
	}
	before, err := f.use()
	if err != nil {
		return err
	}
	n, err := f.flood(senders, b.sustain)
	if err != nil {
		return err
	}
	after, err := f.use()
	if err != nil {
		return err
	}
	counted, err := s.counters()
	if err != nil {
		return err
	}
	if granted := counted.Decided["granted"]; granted < n {
		return fmt.Errorf("%d receipts, but only %d grants", n, granted)
	}
	used := after.since(before)
	each := used.cpu / time.Duration(max(1, n))
	b.results.put(fmt.Sprintf("grants per second from %d clients, for %v; server's CPU for each, ms; memory", b.crowd,
		b.sustain), ours, fmt.Sprintf("%.0f; %s; %s", float64(n)/b.sustain.Seconds(), millis(each), megabytes(used.memory)))
	return nil
}

// flood knocks as fast as receipts come, each time as the next sender, and returns the number of receipts.
func (f *field) flood(senders []spa.Sender, lasts time.Duration) (uint64, error) {
	conn, err := f.net.udp()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(lasts)); err != nil {
		return 0, err
	}
	free := make(chan struct{}, outstanding)
	for range outstanding {
		free <- struct{}{}
	}
	received := make(chan uint64)
	go func() { received <- receipts(conn, free) }()
	err = knockAll(conn, senders, free, lasts)
	return <-received, err
}

func knockAll(conn *net.UDPConn, senders []spa.Sender, free <-chan struct{}, lasts time.Duration) error {
	over := time.After(lasts)
	for i := 0; ; i++ {
		select {
		case <-over:
			return nil
		case <-free:
		}
		packet, err := seal(senders[i%len(senders)])
		if err != nil {
			return err
		}
		_, err = conn.WriteToUDPAddrPort(packet, netip.AddrPortFrom(gatewayAddr, knockPort))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// receipts counts answers until the connection's deadline.
func receipts(conn *net.UDPConn, free chan<- struct{}) uint64 {
	buf := make([]byte, spa.MaxLen)
	for n := uint64(0); ; n++ {
		if _, err := conn.Read(buf); err != nil {
			return n
		}
		select {
		case free <- struct{}{}:
		default: // one knock was answered twice
		}
	}
}

// udp opens a socket on the client. It is not connected: the gateway may answer as any closed port does, until the
// receipt comes.
func (n *network) udp() (conn *net.UDPConn, err error) {
	err = n.client.Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: clientAddr.AsSlice()})
		return err
	})
	return conn, err
}
