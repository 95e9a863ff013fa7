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

// reach is how a TCP port reacted.
type reach uint8

const (
	dark    reach = iota // no answer
	refused              // it was refused
	barred               // another error: the host is unreachable, or a firewall rejects
	open                 // it accepted
)

// wsaRefused is ECONNREFUSED on Windows. Other systems do not use this number.
const wsaRefused = syscall.Errno(10061)

// touch is one attempt to connect.
type touch struct {
	service service.Service
	port    uint16
	local   netip.Addr // to connect from; the zero Addr leaves it to the system
	once    bool       // only the first attempt can get in
	reach   reach
	err     error
}

// glance is how long to wait for a dark port when no answer is expected.
const glance = time.Second

// before tries the services' ports before the first knock: a port that is already open needs none.
func (e *examination) before() []Finding {
	var found []Finding
	for _, f := range e.families {
		for _, s := range e.services {
			if port, ok := client.FirstTCP(e.profile.Ports(s)); ok {
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

// after tries the granted ports.
func (e *examination) after() []Finding {
	var found []Finding
	for _, f := range e.families {
		e.askAgain(f)
		var touches []touch
		for i := range f.asked {
			if port, ok := e.granted(&f.asked[i]); ok {
				touches = append(touches, touch{service: f.asked[i].service, port: port, once: once(&f.asked[i].answer)})
			}
		}
		e.touchAll(f, touches, e.options.Timeout, true)
		for _, t := range touches {
			found = append(found, f.describeAfter(t))
		}
	}
	return found
}

// askAgain requests once more what may have ended before it could be tried: waiting for a blocked knock port may take
// longer than a grant lasts.
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

// once reports whether the service of an answer admits one connection only.
func once(a *client.Answer) bool {
	return a.Receipt != nil && len(a.Receipt.Services) > 0 && a.Receipt.Services[0].Once
}

// lasts reports whether a grant is known to last for some time.
func (k *knocked) lasts(d time.Duration) bool { return time.Until(k.answer.Until(0)) >= d }

// granted returns the first TCP port that an answer opened: from its receipt, or else from the profile.
func (e *examination) granted(k *knocked) (uint16, bool) {
	if k.err != nil || k.answer.Verdict != client.Opened {
		return 0, false
	}
	if r := k.answer.Receipt; r != nil && len(r.Services) > 0 {
		return client.FirstTCP(r.Services[0].Ports)
	}
	return client.FirstTCP(e.profile.Ports(k.service))
}

func (f *family) describeAfter(t touch) Finding {
	at := fmt.Sprintf("%s (tcp/%d, %s)", t.service, t.port, f.name)
	switch t.reach {
	case open:
		text := at + " accepts connections after the knock"
		if t.once {
			text += "; it admits one for each knock, and this was it"
		}
		return Finding{Step: StepAfter, State: Good, Text: text}
	case refused:
		return f.unreached(at+" was granted but refuses connections: nothing listens there, or another firewall of the "+
			"gateway (fail2ban, ufw) rejects them", "is the service running? ")
	case barred:
		return f.unreached(fmt.Sprintf("%s was granted but cannot be reached: %v: another firewall (fail2ban, ufw) rejects "+
			"the connection, or no machine has this address", at, t.err), "")
	}
	return f.unreached(at+" was granted but does not answer: another firewall, on the gateway or on the way, "+
		"drops the connection", "")
}

// unreached reports a granted port that cannot be reached. If the address is translated, the grant may be for another
// address than TCP comes from, and then the guard itself drops or rejects the connection.
func (f *family) unreached(text, question string) Finding {
	from, r := f.local.addr, f.asked[0].answer.Receipt
	if r != nil && r.Source.IsValid() {
		from = r.Source
	}
	bad := Finding{Step: StepAfter, State: Bad, Text: text,
		Advice: fmt.Sprintf("ask the gateway's administrator: %sspa-server check --from %s shows what blocks it",
			question, from)}
	if r != nil && r.Source != f.local.addr {
		bad.Text += fmt.Sprintf("; or the connection leaves from another address than the knock, which was granted to %s "+
			"(a NAT with several addresses, a VPN for part of the traffic)", r.Source)
		bad.Advice = "try again, or send both on the same path, or let in the network that has both addresses (spa-client " +
			"open --let-in), if the administrator allows that;  " + bad.Advice
	}
	return bad
}

// touchAll tries all ports at once. With patience it retries each until it accepts or the time is over.
func (e *examination) touchAll(f *family, touches []touch, within time.Duration, patience bool) {
	ctx, cancel := context.WithTimeout(e.ctx, within)
	defer cancel()
	var all sync.WaitGroup
	for i := range touches {
		all.Go(func() { touches[i].try(ctx, f.addr(), patience) })
	}
	all.Wait()
}

// attempt is how long to wait for one SYN: the system resends a dropped one only after a second.
const attempt = 300 * time.Millisecond

func (t *touch) try(ctx context.Context, gateway netip.Addr, patience bool) {
	patience = patience && !t.once
	for {
		one, cancel := ctx, context.CancelFunc(func() {})
		if patience {
			one, cancel = context.WithTimeout(ctx, attempt)
		}
		var d net.Dialer
		if t.local.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.local, 0))
		}
		conn, err := d.DialContext(one, "tcp", netip.AddrPortFrom(gateway, t.port).String())
		if r := reachOf(err); r != dark || t.reach == dark { // systems limit such answers (icmp_ratelimit)
			t.reach, t.err = r, plainDial(err)
		}
		if err == nil {
			conn.Close()
		} else if patience {
			<-one.Done() // do not retry a refused one at once
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

// plainDial returns the cause of a connection error, without the addresses around it.
func plainDial(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
