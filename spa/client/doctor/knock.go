package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
)

// knocked is what came of knocking on one port for one service.
type knocked struct {
	port    uint16
	service service.Service
	answer  client.Answer
	err     error // the knock could not be made
}

// answered reports whether the gateway let know that it had the knock: by a receipt, or by a port that opened.
func (k *knocked) answered() bool {
	return k.err == nil && k.answer.Verdict != client.Silent && k.answer.Verdict != client.Sent
}

// unheard reports whether the knock was sent and nothing came of it that should have.
func (k *knocked) unheard() bool {
	return k.trouble() == nil && k.answer.Verdict == client.Silent
}

// trouble is why the knock could not be made or its answer not be used, as far as that is certain.
func (k *knocked) trouble() error {
	if k.err == nil && k.answer.Verdict == client.Silent && !errors.Is(k.answer.Err, client.ErrNoAnswer) {
		return k.answer.Err
	}
	return k.err
}

// knock knocks on each port by itself, on all of them at once, for the first service.
func (e *examination) knock() []Finding {
	var all sync.WaitGroup
	for _, f := range e.families {
		f.knocks = make([]knocked, 0, len(e.profile.KnockPorts))
		for _, port := range e.knockPorts() {
			f.knocks = append(f.knocks, knocked{port: port, service: e.first()})
		}
		for i := range f.knocks {
			all.Go(func() { e.knockOn(f, &f.knocks[i]) })
		}
	}
	all.Wait()
	for _, f := range e.families {
		f.settle()
	}
	var found []Finding
	for _, f := range e.families { // what is said of one depends on whether another is answered
		found = append(found, e.describeKnocks(f)...)
	}
	return found
}

// knockPorts are the one in the address, or those of the profile.
func (e *examination) knockPorts() []uint16 {
	if _, port, err := service.SplitAddress(e.profile.Address); err == nil && port != 0 {
		return []uint16{port}
	}
	return e.profile.KnockPorts
}

func (e *examination) knockOn(f *family, k *knocked) {
	one := *e.profile
	one.Address, one.KnockPorts = f.gateway, []uint16{k.port}
	plan, err := client.Prepare(e.ctx, &one, client.Command{
		Type: spa.TypeOpen, Services: []service.Service{k.service}, Source: e.options.Source, Timeout: e.options.Timeout,
	})
	if err != nil {
		k.err = err
		return
	}
	k.answer = client.Answer{Err: client.ErrNoAnswer} // where ctx ends first
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
		finding := e.describeKnock(f, k)
		finding.Step, finding.Text = StepKnock, fmt.Sprintf("udp/%d at %s%s", k.port, f.gateway, finding.Text)
		found = append(found, finding)
	}
	return found
}

// describeKnock says what came of a knock; the text goes on where the port was named.
func (e *examination) describeKnock(f *family, k *knocked) Finding {
	switch err := k.trouble(); {
	case errors.Is(err, client.ErrMismatch):
		return Finding{State: Bad, Text: ": the gateway's receipt is authentic and does not match the request: a fault of " +
			"the gateway", Advice: "tell its administrator"}
	case err != nil && e.answered():
		return Finding{State: Note, Text: " cannot be knocked on, but another address is answered: " + err.Error()}
	case err != nil:
		return Finding{State: Bad, Text: " cannot be knocked on: " + err.Error(), Advice: "nothing was sent: the cause is " +
			"on this machine, or in --source"}
	case k.answered() && e.profile.Receipts:
		return Finding{State: Good, Text: " is answered"}
	case k.answered() && f.wasOpen(k.service):
		return Finding{State: Note, Text: ": nothing tells whether it was heard: this gateway sends no receipts, and " +
			"the port was open before"}
	case k.answered() && len(f.knocks) > 1:
		return Finding{State: Good, Text: ": the port opened; by which of the knocks, nothing tells (this " +
			"gateway sends no receipts)"}
	case k.answered():
		return Finding{State: Good, Text: ": the port opened (this gateway sends no receipts)"}
	case k.answer.Verdict == client.Sent:
		return Finding{State: Note, Text: fmt.Sprintf(": nothing tells whether it was heard: this gateway sends no "+
			"receipts, and %s has no TCP port to try", k.service)}
	case f.answered():
		return Finding{State: Bad, Text: " is not answered, but other knock ports are: it is blocked on the way, or the " +
			"gateway no longer has it",
			Advice: "the others are enough; a new token has the present ports"}
	case e.answered():
		return Finding{State: Bad, Text: " is not answered, but another address is: " + f.name +
			" does not get through, is not this gateway's, or is not where this key may knock from",
			Advice: "one address is enough if connections use it"}
	}
	return Finding{State: Note, Text: " is not answered"}
}

// wasOpen reports whether a service's port accepted before anything was knocked on.
func (f *family) wasOpen(s service.Service) bool {
	return slices.ContainsFunc(f.before, func(t touch) bool { return t.service == s && t.reach == open })
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
	for _, s := range e.services {
		if s != f.asked[0].service {
			f.asked = append(f.asked, knocked{port: f.asked[0].port, service: s})
		}
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
			Text: fmt.Sprintf("%s: NAT translates this machine's address: packets leave from %s and arrive from %s; everyone "+
				"else behind %[3]s reaches the port too while it is open", f.name, f.local.addr, receipt.Source)})
	}
	return found
}

func (f *family) describeReceipt(k *knocked) Finding {
	switch receipt := k.answer.Receipt; {
	case k.trouble() != nil:
		return Finding{Step: StepReceipt, State: Bad, Text: fmt.Sprintf("%s: %s cannot be asked for: %v",
			f.name, k.service, k.trouble())}
	case k.answer.Verdict == client.Refused:
		return Finding{Step: StepReceipt, State: Bad, Status: receipt.Status,
			Text: fmt.Sprintf("%s: the gateway refuses %s: %s", f.name, k.service, receipt.Status)}
	case receipt != nil:
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway granted %s to %s", f.name,
			k.service, receipt.Source)}
	case k.answered() && f.wasOpen(k.service):
		return Finding{Step: StepReceipt, State: Note, Text: fmt.Sprintf("%s: %s was open before, so nothing tells whether "+
			"the gateway opened it", f.name, k.service)}
	case k.answered():
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway opened %s, without saying so",
			f.name, k.service)}
	case k.answer.Verdict == client.Sent:
		return Finding{Step: StepReceipt, State: Note,
			Text: fmt.Sprintf("%s: %s was asked for, and nothing tells what came of it: it has no TCP port to try", f.name,
				k.service)}
	}
	return Finding{Step: StepReceipt, State: Bad,
		Text: fmt.Sprintf("%s: %s is not answered, though another service was: a gateway without receipts refused it, or "+
			"the answers were lost", f.name, k.service),
		Advice: "try again, or ask the gateway's administrator whether this key may open it"}
}

func portList(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, p := range ports {
		texts[i] = "udp/" + strconv.Itoa(int(p))
	}
	return strings.Join(texts, ", ")
}
