package doctor

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/client"
)

// knocked is what came of knocking on one port for one service.
type knocked struct {
	port    uint16
	service spa.Service
	answer  client.Answer
	err     error // the knock could not be made
	icmp    bool  // a message came back that nothing listens there
}

func (k *knocked) answered() bool { return k.err == nil && k.answer.Verdict != client.Silent }

// knock knocks on each port by itself, on all of them at once, for the first service.
func (e *examination) knock() []Finding {
	var all sync.WaitGroup
	for _, f := range e.families {
		f.knocks = make([]knocked, 0, len(e.profile.KnockPorts))
		for _, port := range e.knockPorts() {
			f.knocks = append(f.knocks, knocked{port: port, service: e.services[0]})
		}
		for i := range f.knocks {
			all.Go(func() { e.knockOn(f, &f.knocks[i]) })
			all.Go(func() { f.knocks[i].icmp = e.unreachable(f, f.knocks[i].port) })
		}
	}
	all.Wait()
	var found []Finding
	for _, f := range e.families {
		f.settle()
		found = append(found, e.describeKnocks(f)...)
	}
	return found
}

// knockPorts are the one in the address, or those of the profile.
func (e *examination) knockPorts() []uint16 {
	if _, port, err := keys.SplitAddress(e.profile.Address); err == nil && port != 0 {
		return []uint16{port}
	}
	return e.profile.KnockPorts
}

func (e *examination) knockOn(f *family, k *knocked) {
	one := *e.profile
	one.Address, one.KnockPorts = f.gateway, []uint16{k.port}
	plan, err := client.Prepare(e.ctx, &one, client.Command{
		Type: spa.TypeOpen, Services: []spa.Service{k.service}, Source: e.options.Source, Timeout: e.options.Timeout,
	})
	if err != nil {
		k.err = err
		return
	}
	for answer := range plan.Knock(e.ctx) {
		k.answer = answer
	}
}

// settle keeps the first answer as the family's.
func (f *family) settle() {
	for i := range f.knocks {
		if f.knocks[i].answered() {
			f.asked = []knocked{f.knocks[i]}
			return
		}
	}
}

func (f *family) answered() bool { return len(f.asked) > 0 }

func (e *examination) describeKnocks(f *family) []Finding {
	var found []Finding
	for i := range f.knocks {
		k := &f.knocks[i]
		at := fmt.Sprintf("udp/%d at %s", k.port, f.gateway)
		switch {
		case k.err != nil:
			found = append(found, Finding{Step: StepKnock, State: Bad, Text: at + " cannot be knocked on: " + k.err.Error()})
		case k.answered() && e.profile.Receipts:
			found = append(found, Finding{Step: StepKnock, State: Good, Text: at + " is answered"})
		case k.answered():
			found = append(found, Finding{Step: StepKnock, State: Good, Text: at + ": the port opened (this gateway sends no receipts)"})
		case f.answered():
			found = append(found, Finding{Step: StepKnock, State: Bad, Text: at + fmt.Sprintf(" is not answered, and others of its ports are: udp/%d is blocked on the way", k.port),
				Advice: "the others are enough; the administrator can take it out of knock_ports"})
		case e.answered():
			found = append(found, Finding{Step: StepKnock, State: Bad, Text: at + " is not answered, and the other address family is: " + f.name + " does not get through, or is not this gateway's",
				Advice: "one family is enough, where what connects uses that one"})
		default:
			found = append(found, Finding{Step: StepKnock, State: Note, Text: at + " is not answered"})
		}
	}
	return found
}

// unreachable reports whether a datagram to a knock port brings back that nothing listens there. A
// gateway whose guard stands says nothing at all. The datagram is random, of a knock's length.
func (e *examination) unreachable(f *family, port uint16) bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.addr(), port)))
	if err != nil {
		return false
	}
	defer conn.Close()
	noise := make([]byte, spa.MinLen)
	rand.Read(noise)
	if _, err := conn.Write(noise); err != nil {
		return false
	}
	if err := conn.SetReadDeadline(time.Now().Add(glance)); err != nil {
		return false
	}
	_, err = conn.Read(make([]byte, spa.MaxLen))
	return errors.Is(err, syscall.ECONNREFUSED)
}

// receipt asks for the other services, on a port that is answered, and says what the gateway said.
func (e *examination) receipt() []Finding {
	var found []Finding
	for _, f := range e.families {
		if !f.answered() {
			continue
		}
		e.askOthers(f)
		found = append(found, e.describeWay(f)...)
		for i := range f.asked {
			found = append(found, f.describeReceipt(&f.asked[i]))
		}
	}
	return found
}

// askOthers asks for each service by itself: a request is granted whole or not at all, and a
// refusal does not say for which.
func (e *examination) askOthers(f *family) {
	for _, s := range e.services[1:] {
		f.asked = append(f.asked, knocked{port: f.asked[0].port, service: s})
	}
	var all sync.WaitGroup
	for i := range f.asked[1:] {
		all.Go(func() { e.knockOn(f, &f.asked[1+i]) })
	}
	all.Wait()
}

// describeWay says what the first receipt tells of clock and address.
func (e *examination) describeWay(f *family) []Finding {
	receipt := f.asked[0].answer.Receipt
	if receipt == nil {
		return nil
	}
	found := []Finding{clockFinding(f.asked[0].answer.Offset, "the gateway's")}
	if receipt.Source != f.local.addr {
		found = append(found, Finding{Step: StepAddress, State: Note,
			Text: fmt.Sprintf("%s: this machine's address is translated: packets leave from %s and arrive from %s; whoever else is behind %[3]s reaches the port too while it is open", f.name, f.local.addr, receipt.Source)})
	}
	return found
}

func (f *family) describeReceipt(k *knocked) Finding {
	switch receipt := k.answer.Receipt; {
	case k.err != nil:
		return Finding{Step: StepReceipt, State: Bad, Text: fmt.Sprintf("%s: %s cannot be asked for: %v", f.name, k.service, k.err)}
	case k.answer.Verdict == client.Refused:
		return Finding{Step: StepReceipt, State: Bad, Status: receipt.Status, Text: fmt.Sprintf("%s: the gateway refuses %s: %s", f.name, k.service, receipt.Status)}
	case receipt != nil:
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway granted %s to %s", f.name, k.service, receipt.Source)}
	case k.answered():
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway opened %s, without saying so", f.name, k.service)}
	}
	return Finding{Step: StepReceipt, State: Bad, Text: fmt.Sprintf("%s: %s is not answered, though another service was: it is refused by a gateway that sends no receipts, or the answers were lost", f.name, k.service),
		Advice: "try again, or ask the gateway's administrator whether this key may open it"}
}

func portList(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = "udp/" + strconv.Itoa(int(p))
	}
	return strings.Join(texts, ", ")
}
