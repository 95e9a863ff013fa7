package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/client"
)

// reach is what a TCP port did.
type reach uint8

const (
	dark    reach = iota // nothing came back
	refused              // it was refused
	barred               // something else came back: the host is out of reach, or a firewall says so
	open                 // it accepted
)

// wsaRefused is what Windows says where others say ECONNREFUSED. No other system has it.
const wsaRefused = syscall.Errno(10061)

// touch is one attempt to connect.
type touch struct {
	service service.Service
	port    uint16
	reach   reach
	err     error
}

// glance is how long a port that is dark is waited for where nothing is expected to answer.
const glance = time.Second

// before tries the services' ports before anything is knocked on: what is open already needs no knock.
func (e *examination) before() []Finding {
	var found []Finding
	for _, f := range e.families {
		for _, s := range e.services {
			if port, ok := client.FirstTCP(e.ports(s)); ok {
				f.before = append(f.before, touch{service: s, port: port})
			}
		}
		e.touchAll(f, f.before, glance, false)
		for _, t := range f.before {
			found = append(found, f.describeBefore(t))
		}
	}
	return found
}

func (f *family) describeBefore(t touch) Finding {
	at := fmt.Sprintf("%s (tcp/%d, %s)", t.service, t.port, f.name)
	switch t.reach {
	case open:
		return Finding{Step: StepBefore, State: Note,
			Text: at + " accepts connections without a knock: it is open for this address already, or it is not guarded",
			Advice: "if you have not just knocked, tell the gateway's administrator: the guard may be missing (spa-server " +
				"status, spa-server check)"}
	case refused:
		return Finding{Step: StepBefore, State: Good, Text: at + " refuses connections before the knock"}
	case barred:
		return Finding{Step: StepBefore, State: Good, Text: fmt.Sprintf("%s is shut before the knock: %v", at, t.err)}
	}
	return Finding{Step: StepBefore, State: Good, Text: at + " is dark before the knock, as it should be"}
}

// after tries the ports of what was granted.
func (e *examination) after() []Finding {
	var found []Finding
	for _, f := range e.families {
		e.askAgain(f)
		var touches []touch
		for i := range f.asked {
			if port, ok := e.granted(&f.asked[i]); ok {
				touches = append(touches, touch{service: f.asked[i].service, port: port})
			}
		}
		e.touchAll(f, touches, e.options.Timeout, true)
		for _, t := range touches {
			found = append(found, f.describeAfter(t))
		}
	}
	return found
}

// askAgain asks once more for what may be over before it has been tried: a knock port that is
// blocked is waited for, and a grant may be shorter than that.
func (e *examination) askAgain(f *family) {
	var all sync.WaitGroup
	for i := range f.asked {
		if _, ok := e.granted(&f.asked[i]); !ok || f.asked[i].lasts(e.options.Timeout) {
			continue
		}
		all.Go(func() {
			again := knocked{port: f.asked[i].port, service: f.asked[i].service}
			if e.knockOn(f, &again); again.answered() {
				f.asked[i] = again
			}
		})
	}
	all.Wait()
}

// lasts reports whether a grant is known to go on for some time.
func (k *knocked) lasts(d time.Duration) bool { return time.Until(k.answer.Until(0)) >= d }

// granted is the first TCP port that an answer opened, as its receipt tells it, or as the profile
// has it where there is none.
func (e *examination) granted(k *knocked) (uint16, bool) {
	if k.err != nil || k.answer.Verdict != client.Opened {
		return 0, false
	}
	if r := k.answer.Receipt; r != nil && len(r.Services) > 0 {
		return client.FirstTCP(r.Services[0].Ports)
	}
	return client.FirstTCP(e.ports(k.service))
}

func (f *family) describeAfter(t touch) Finding {
	at := fmt.Sprintf("%s (tcp/%d, %s)", t.service, t.port, f.name)
	switch t.reach {
	case open:
		return Finding{Step: StepAfter, State: Good, Text: at + " accepts connections after the knock"}
	case refused:
		return f.unreached(at+" was granted and refuses connections: nothing listens there, or another firewall of the "+
			"gateway (fail2ban, ufw) rejects them", "is the service running? ")
	case barred:
		return f.unreached(fmt.Sprintf("%s was granted and cannot be reached: %v: another firewall (fail2ban, ufw) rejects "+
			"the connection, or no machine has this address", at, t.err), "")
	}
	return f.unreached(at+" was granted and does not answer: another firewall, on the gateway or on the way, "+
		"drops the connection", "")
}

// unreached is a port that was granted and cannot be connected to. Where the address is translated, the
// grant may be for another one than TCP leaves by, and the guard itself be what drops or rejects it.
func (f *family) unreached(text, question string) Finding {
	from, r := f.local.addr, f.asked[0].answer.Receipt
	if r != nil && r.Source.IsValid() {
		from = r.Source
	}
	bad := Finding{Step: StepAfter, State: Bad, Text: text,
		Advice: fmt.Sprintf("ask the gateway's administrator: %sspa-server check --from %s says what stands in the way",
			question, from)}
	if r != nil && r.Source != f.local.addr {
		bad.Text += fmt.Sprintf("; or the connection leaves from another address than the knock, which was granted to %s "+
			"(a NAT with several addresses, a VPN for a part of the traffic)", r.Source)
		bad.Advice = "try again, or send both the same way; " + bad.Advice
	}
	return bad
}

// touchAll tries all ports at once. With patience it tries each again until it accepts or the time is over.
func (e *examination) touchAll(f *family, touches []touch, within time.Duration, patience bool) {
	ctx, cancel := context.WithTimeout(e.ctx, within)
	defer cancel()
	var all sync.WaitGroup
	for i := range touches {
		all.Go(func() { touches[i].try(ctx, f.addr(), patience) })
	}
	all.Wait()
}

// ports are a service's as far as the profile knows them.
func (e *examination) ports(s service.Service) []service.Ports {
	if s.Name == "" {
		return []service.Ports{{Proto: s.Proto, Low: s.Port, High: s.Port}}
	}
	var ports []service.Ports
	for _, text := range e.profile.Services[s.Name] {
		if p, err := service.ParsePorts(text); err == nil {
			ports = append(ports, p)
		}
	}
	return ports
}

// attempt is how long one SYN is waited for: a system sends a dropped one again only after a second.
const attempt = 300 * time.Millisecond

func (t *touch) try(ctx context.Context, gateway netip.Addr, patience bool) {
	for {
		one, cancel := ctx, context.CancelFunc(func() {})
		if patience {
			one, cancel = context.WithTimeout(ctx, attempt)
		}
		var d net.Dialer
		conn, err := d.DialContext(one, "tcp", netip.AddrPortFrom(gateway, t.port).String())
		if r := reachOf(err); r != dark || t.reach == dark { // systems answer so only once in a while (icmp_ratelimit)
			t.reach, t.err = r, plainDial(err)
		}
		if err == nil {
			conn.Close()
		} else if patience {
			<-one.Done() // one that was refused is not asked again at once
		}
		cancel()
		if err == nil || !patience || ctx.Err() != nil {
			return
		}
	}
}

func reachOf(err error) reach {
	switch {
	case err == nil:
		return open
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, wsaRefused):
		return refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, context.Canceled), errors.Is(err, syscall.ETIMEDOUT):
		return dark
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return dark
	}
	return barred
}

// plainDial is the cause of an error of a connection, without the addresses around it.
func plainDial(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
