package main

import (
	"errors"
	"net/netip"
	"time"

	"sallyport/spa/lab"
)

// network is a client and a gateway, joined by a cable or, with a delay, by a relay.
type network struct {
	client, gateway *lab.Host
	relay           *relay // nil: a cable
}

// The client's and the gateway's interfaces and addresses. The pool has more addresses of the client.
const (
	clientDev, gatewayDev = "vc", "vs"
	pool                  = "198.51.100.0/24"
)

var (
	clientAddr  = netip.MustParseAddr("192.0.2.2")
	gatewayAddr = netip.MustParseAddr("192.0.2.1")
	noiseAddr   = netip.MustParseAddr("192.0.2.9") // where noise from one source comes from
	poolAddr    = netip.MustParseAddr("198.51.100.1")
	guarded     = netip.AddrPortFrom(gatewayAddr, 22)
)

// newNetwork makes the hosts, with an echo server on port 22 of the gateway. The delay is one way.
func newNetwork(delay time.Duration) (*network, error) {
	client, err := lab.NewHost("client")
	if err != nil {
		return nil, err
	}
	gateway, err := lab.NewHost("gateway")
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	n := &network{client: client, gateway: gateway}
	if err := n.join(delay); err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

func (n *network) join(delay time.Duration) error {
	if err := n.link(delay); err != nil {
		return err
	}
	err := errors.Join(
		n.client.AddAddr(clientDev, clientAddr.String()+"/24"),
		n.gateway.AddAddr(gatewayDev, gatewayAddr.String()+"/24"),
		n.client.Local(pool),
		n.gateway.Route(pool, clientAddr.String()),
	)
	if err != nil {
		return err
	}
	_, err = lab.EchoServer(n.gateway, ":22")
	return err
}

func (n *network) link(delay time.Duration) (err error) {
	if delay == 0 {
		return lab.Link(n.client, clientDev, n.gateway, gatewayDev)
	}
	n.relay, err = newRelay(n.client, clientDev, n.gateway, gatewayDev, delay)
	return err
}

func (n *network) close() error {
	var err error
	if n.relay != nil {
		err = n.relay.close()
	}
	return errors.Join(err, n.client.Close(), n.gateway.Close())
}
