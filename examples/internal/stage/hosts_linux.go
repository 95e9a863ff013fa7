package stage

import (
	"errors"
	"fmt"
	"net"
	"time"

	"sallyport/spa/lab"
)

const (
	// Patience is how long a connection attempt may go without an answer until the port counts as dark. Linux resends
	// the first packet of a connection after a second: twice is enough.
	Patience = 1300 * time.Millisecond

	// AnswerWithin is for answers that come at once, unless the machine is very busy.
	AnswerWithin = time.Minute
)

// A Host is a network namespace on the stage's one network.
type Host struct {
	*lab.Host
	Addr4, Addr6 string
}

// Hosts makes the hosts, with the addresses 192.0.2.1, 192.0.2.2 and so on, and the switch between them.
func (s *Stage) Hosts(names ...string) (hosts []*Host, err error) {
	if s.cable, err = lab.NewHost("switch"); err != nil {
		return nil, err
	}
	for i, name := range names {
		made, err := lab.NewHost(name)
		if err != nil {
			return nil, err
		}
		h := &Host{made, fmt.Sprintf("192.0.2.%d", i+1), fmt.Sprintf("2001:db8::%x", i+1)}
		s.hosts = append(s.hosts, h)
		if err := h.plug(s.cable); err != nil {
			return nil, err
		}
	}
	return s.hosts, s.cable.Bridge("br0", names...)
}

// plug connects a host to the port of the switch that has its name, and gives it its addresses.
func (h *Host) plug(cable *lab.Host) error {
	if err := lab.Link(h.Host, "eth0", cable, h.Name()); err != nil {
		return err
	}
	if err := h.AddAddr("eth0", h.Addr4+"/24"); err != nil {
		return err
	}
	if !lab.HasIPv6() {
		return nil
	}
	return h.AddAddr("eth0", h.Addr6+"/64")
}

// BothMeet lets two hosts try a port at the same time.
func (s *Stage) BothMeet(a *Host, promised Promise, b *Host, promisedB Promise, door string) error {
	type attempt struct {
		conn net.Conn
		err  error
	}
	second := make(chan attempt, 1)
	go func() {
		conn, err := lab.Dial(b.Host, "", door, waitFor(promisedB))
		second <- attempt{conn, err}
	}()
	conn, err := s.Meet(a, promised, door)
	other := <-second
	otherErr := s.tell(b, promisedB, door, other.err)
	for _, c := range []net.Conn{conn, other.conn} {
		if c != nil {
			c.Close()
		}
	}
	return errors.Join(err, otherErr)
}

// Meet lets a host try a port. The connection is nil unless an open port was promised and found.
func (s *Stage) Meet(who *Host, want Promise, door string) (net.Conn, error) {
	conn, err := lab.Dial(who.Host, "", door, waitFor(want))
	if broken := s.tell(who, want, door, err); broken != nil || want == Dark {
		if conn != nil {
			conn.Close()
		}
		return nil, broken
	}
	return conn, nil
}

// waitFor returns how long to wait for what is promised.
func waitFor(want Promise) time.Duration {
	if want == Open {
		return AnswerWithin
	}
	return Patience
}

// tell prints the outcome of an attempt, and returns an error unless it was as promised.
func (s *Stage) tell(who *Host, want Promise, door string, err error) error {
	how, broken := judge(want, err)
	if broken != nil {
		broken = fmt.Errorf("%s at %s: %w", who.Name(), door, broken)
	}
	return s.Verdict(fmt.Sprintf("%-8s connects to %s", who.Name(), door), how, broken)
}
