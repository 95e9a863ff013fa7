package main

import (
	"context"
	"net"
	"time"

	"sallyport/examples/internal/stage"
)

func run(ctx context.Context, tell *stage.Teller) error {
	return stage.Run(ctx, tell, []string{"spa-server", "spa-client", "spa-keygen"}, story)
}

// demo is the people and their things.
type demo struct {
	*stage.Stage
	gateway   *stage.Host
	alice     *stage.Host
	stranger  *stage.Host
	server    *stage.Server
	session   net.Conn // alice's first one
	knocks    [][]byte // the packets that she sent for it
	sniffer   *stage.Sniffer
	openUntil time.Time // when her first grant ends
}

// story runs the demo from the first host made to the last step.
func story(ctx context.Context, s *stage.Stage) error {
	hosts, err := s.Hosts("gateway", "alice", "stranger")
	if err != nil {
		return err
	}
	d := &demo{Stage: s, gateway: hosts[0], alice: hosts[1], stranger: hosts[2]}
	defer d.close()
	d.introduce()
	return d.Follow(ctx, d.steps())
}

// close ends what the stage does not know.
func (d *demo) close() {
	if d.sniffer != nil {
		d.sniffer.Close()
	}
	if d.session != nil {
		d.session.Close()
	}
}

const (
	gateway4 = "192.0.2.1"
	gateway6 = "2001:db8::1"
)
