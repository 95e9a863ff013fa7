package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// maxTries is the limit of packets for a command in section 7.
const maxTries = 16

// untold is how long after the first packet others need not tell when that was: section 7 says 30 s.
const untold = 25 * time.Second

// command is what the user wants once (section 7, "A command").
type command struct {
	kind     byte
	millis   uint32
	services []service
}

// family is one address family of the server. It is knocked on by itself.
type family struct {
	destinations []netip.AddrPort // tried in turn
	stated       netip.Addr       // the source in the request, or the zero Addr
	bind         netip.Addr       // what to send from, or the zero Addr
	// Where no receipts come: of each service where to connect to, or blind if
	// connecting would tell nothing.
	probes [][]netip.AddrPort
	blind  bool
}

// answer is what ends a command: a receipt or, where the server sends none,
// the port that accepted last, or that nobody knows.
type answer struct {
	receipt  receipt
	accepted netip.AddrPort
	unknown  bool
	first    time.Time // when the first packet was sealed
	arrived  time.Time
}

var errNoAnswer = errors.New("no answer")

// resolve finds the families of the server that there is a way to.
func resolve(ctx context.Context, p profile, rule sourceRule) ([]family, error) {
	host, ports, err := p.endpoints()
	if err != nil {
		return nil, err
	}
	addresses, err := lookUp(ctx, host)
	if err != nil {
		return nil, err
	}
	var families []family
	for _, v4 := range []bool{true, false} {
		if !rule.covers(v4) {
			continue
		}
		if f, ok := newFamily(addresses, ports, v4, rule); ok {
			families = append(families, f)
		}
	}
	if len(families) == 0 {
		return nil, fmt.Errorf("no way to %s in the family of the source address", host)
	}
	return families, nil
}

func lookUp(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve the server: %w", err)
	}
	for i := range addresses {
		addresses[i] = addresses[i].Unmap()
	}
	return addresses, nil
}

// newFamily pairs the addresses of a family that there is a way to with the
// ports, and chooses the source: one for all of them, as all packets of a
// command state the same. It reports false where no address is left.
func newFamily(addresses []netip.Addr, ports []uint16, v4 bool, rule sourceRule) (family, bool) {
	var reachable []netip.Addr
	var local netip.Addr
	for _, a := range addresses {
		from, err := localFor(netip.AddrPortFrom(a, ports[0]))
		if a.Is4() != v4 || err != nil {
			continue
		}
		if reachable = append(reachable, a); len(reachable) == 1 {
			local = from
		}
	}
	f := family{destinations: pairs(reachable, ports), stated: rule.choose(local)}
	if f.stated.IsValid() && isLocal(f.stated) {
		f.bind = f.stated
	}
	return f, len(reachable) > 0
}

// pairs returns every address with every port, another address each time.
func pairs(addresses []netip.Addr, ports []uint16) []netip.AddrPort {
	var list []netip.AddrPort
	for _, port := range ports {
		for _, a := range addresses {
			list = append(list, netip.AddrPortFrom(a, port))
		}
	}
	return list
}

// isLocal tells whether packets can be sent from an address. A stated address
// may also be that of a NAT in front.
func isLocal(a netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(list, func(have net.Addr) bool {
		prefix, err := netip.ParsePrefix(have.String())
		return err == nil && prefix.Addr().Unmap() == a
	})
}

// listen opens the socket. It is not connected, so that ICMP errors, which
// anyone can forge, do not come back from it.
func (f family) listen() (*net.UDPConn, error) {
	network := "udp6"
	if f.destinations[0].Addr().Is4() {
		network = "udp4"
	}
	var local *net.UDPAddr
	if f.bind.IsValid() {
		local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.bind, 0))
	}
	conn, err := net.ListenUDP(network, local)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	return conn, nil
}

// attempt is a command on its way to one family.
type attempt struct {
	family  family
	session *session
	request request
	conn    *net.UDPConn
	sent    [][]byte
	first   time.Time
}

// knock does a command for one family: packets until the receipt comes, or
// until ctx ends.
func (f family) knock(ctx context.Context, s *session, cmd command, within time.Duration) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := f.listen()
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	r := request{kind: cmd.kind, millis: cmd.millis, source: f.stated, services: cmd.services}
	if _, err := rand.Read(r.id[:]); err != nil {
		return answer{}, fmt.Errorf("draw a request id: %w", err)
	}
	a := &attempt{family: f, session: s, request: r, conn: conn}
	moments := schedule(within, mathrand.Float64)
	if f.blind { // a few packets, and one at least to each address and port
		moments = moments[:min(max(3, len(f.destinations)), maxTries)]
	}
	return a.run(ctx, moments)
}

func (a *attempt) run(ctx context.Context, moments []time.Duration) (answer, error) {
	datagrams, accepted := make(chan []byte), make(chan netip.AddrPort)
	go receive(ctx, a.conn, datagrams)
	if len(a.family.probes) > 0 {
		go probe(ctx, a.family, accepted)
	}
	start, timer := time.Now(), time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return answer{}, errNoAnswer
		case <-timer.C:
			if err := a.send(); err != nil {
				return answer{}, err
			}
			if n := len(a.sent); n < len(moments) {
				timer.Reset(time.Until(start.Add(moments[n])))
			} else if a.family.blind {
				return answer{unknown: true}, nil
			}
		case d := <-datagrams:
			if r, ok := a.match(d); ok {
				return answer{receipt: r, first: a.first, arrived: time.Now()}, nil
			}
		case port := <-accepted:
			return answer{accepted: port}, nil
		}
	}
}

// send seals a new packet and sends it to the next destination. That the
// system could not send it does not end the command.
func (a *attempt) send() error {
	now := time.Now()
	a.request.time = now.UnixNano()
	if len(a.sent) > 0 && now.Sub(a.first) > untold {
		a.request.first = a.first.UnixNano()
	}
	if len(a.request.encode()) > maxRequest {
		return nil // its services leave no room to tell when it began: it ends with the packets before
	}
	packet, err := a.session.seal(a.request.encode())
	if err != nil {
		return err
	}
	if len(a.sent) == 0 {
		a.first = now
	}
	to := a.family.destinations[len(a.sent)%len(a.family.destinations)]
	a.sent = append(a.sent, packet)
	_, _ = a.conn.WriteToUDPAddrPort(packet, to)
	return nil
}

// match tries every packet sent: the receipt may be for any of them.
func (a *attempt) match(datagram []byte) (receipt, bool) {
	for _, packet := range a.sent {
		if r, err := a.session.openReceipt(packet, datagram); err == nil {
			return r, true
		}
	}
	return receipt{}, false
}

// receive hands on what comes until the socket is closed. Other errors do not
// end the waiting (section 6).
func receive(ctx context.Context, conn *net.UDPConn, out chan<- []byte) {
	buffer := make([]byte, maxPacket+1)
	for {
		n, _, err := conn.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case out <- slices.Clone(buffer[:n]):
		case <-ctx.Done():
			return
		}
	}
}

// probe tries to connect until a port of each service has accepted: all that
// can be found out where the server sends no receipts.
func probe(ctx context.Context, f family, accepted chan<- netip.AddrPort) {
	dialer := net.Dialer{Timeout: time.Second}
	if f.bind.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(f.bind, 0))
	}
	var last netip.AddrPort
	for _, service := range f.probes {
		if last = connect(ctx, dialer, service); !last.IsValid() {
			return
		}
	}
	select {
	case accepted <- last:
	case <-ctx.Done():
	}
}

// connect returns the first of the ports that accepts, or none when ctx ends.
func connect(ctx context.Context, dialer net.Dialer, ports []netip.AddrPort) netip.AddrPort {
	for i := 0; ctx.Err() == nil; i++ {
		to := ports[i%len(ports)]
		if conn, err := dialer.DialContext(ctx, "tcp", to.String()); err == nil {
			conn.Close()
			return to
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return netip.AddrPort{}
}

// schedule spreads the tries over the time allowed (section 7, number 3).
func schedule(allowed time.Duration, random func() float64) []time.Duration {
	power := math.Max(1.5, math.Log(float64(allowed)/float64(150*time.Millisecond))/math.Log(maxTries))
	at := func(i int) float64 { return float64(allowed) * math.Pow(float64(i)/maxTries, power) }
	moments := make([]time.Duration, maxTries)
	for i := 1; i < maxTries; i++ {
		gap := at(i) - at(i-1)
		moments[i] = time.Duration(at(i) + gap/5*(2*random()-1))
	}
	return moments
}

// end is when a grant ends by the client's clock (section 9, "Clocks").
func (a answer) end(g grant) time.Time {
	made := time.Unix(0, a.receipt.time)
	end := made.Add(time.Duration(g.millis) * time.Millisecond)
	switch {
	case made.Before(a.first):
		return end.Add(a.first.Sub(made))
	case made.After(a.arrived):
		return end.Add(a.arrived.Sub(made))
	}
	return end
}
