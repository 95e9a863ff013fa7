package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"sallyport/spa"
	"sallyport/spa/client"
)

// reach is what a TCP port did.
type reach uint8

const (
	dark    reach = iota // nothing came back
	refused              // it was refused
	open                 // it accepted
)

// touch is one attempt to connect.
type touch struct {
	service spa.Service
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
			if port, ok := firstTCP(e.ports(s)); ok {
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
		return Finding{Step: StepBefore, State: Note, Text: at + " accepts connections without a knock: something has it open for this address already, or it is not guarded",
			Advice: "if you have not just knocked, tell the gateway's administrator: the guard may be missing (spa-server status, spa-server check)"}
	case refused:
		return Finding{Step: StepBefore, State: Good, Text: at + " refuses connections before the knock"}
	}
	return Finding{Step: StepBefore, State: Good, Text: at + " is dark before the knock, as it should be"}
}

// after tries the ports of what was granted.
func (e *examination) after() []Finding {
	var found []Finding
	for _, f := range e.families {
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

// granted is the first TCP port that an answer opened, as its receipt tells it, or as the profile
// has it where there is none.
func (e *examination) granted(k *knocked) (uint16, bool) {
	if k.err != nil || k.answer.Verdict != client.Opened {
		return 0, false
	}
	if r := k.answer.Receipt; r != nil && len(r.Services) > 0 {
		return firstTCP(r.Services[0].Ports)
	}
	return firstTCP(e.ports(k.service))
}

func firstTCP(all []spa.Ports) (uint16, bool) {
	for _, p := range all {
		if p.Proto == spa.TCP {
			return p.Low, true
		}
	}
	return 0, false
}

func (f *family) describeAfter(t touch) Finding {
	at := fmt.Sprintf("%s (tcp/%d, %s)", t.service, t.port, f.name)
	switch t.reach {
	case open:
		return Finding{Step: StepAfter, State: Good, Text: at + " accepts connections after the knock"}
	case refused:
		return Finding{Step: StepAfter, State: Bad, Text: at + " was granted and refuses connections: nothing listens there, or another firewall of the host rejects them",
			Advice: "ask the gateway's administrator: is the service running? spa-server check says what stands in the way"}
	}
	bad := Finding{Step: StepAfter, State: Bad, Text: at + " was granted and does not answer: another firewall, on the gateway or on the way, drops the connection",
		Advice: "ask the gateway's administrator: spa-server check says what stands in the way"}
	if r := f.asked[0].answer.Receipt; r != nil && r.Source != f.local.addr {
		bad.Text = fmt.Sprintf("%s was granted for %s and does not answer: another firewall drops the connection, or TCP leaves by another address than the knock did (a pool of addresses of a carrier, a VPN for some destinations)", at, r.Source)
		bad.Advice = "try again, or knock by the same way as the connection; " + bad.Advice
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
func (e *examination) ports(s spa.Service) []spa.Ports {
	if s.Name == "" {
		return []spa.Ports{{Proto: s.Proto, Low: s.Port, High: s.Port}}
	}
	var ports []spa.Ports
	for _, text := range e.profile.Services[s.Name] {
		if p, err := spa.ParsePorts(text); err == nil {
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
		t.reach, t.err = reachOf(err), err
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
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	}
	return dark
}
