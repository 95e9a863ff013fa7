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

// knocked is the outcome of a knock on one port for one service.
type knocked struct {
	port    uint16
	service service.Service
	answer  client.Answer
	err     error // the knock could not be made
}

// answered reports whether the gateway showed that it received the knock: by a receipt, or by a port that opened.
func (k *knocked) answered() bool {
	return k.err == nil && k.answer.Verdict != client.Silent && k.answer.Verdict != client.Sent
}

// unheard reports whether the knock was sent and the expected answer did not come.
func (k *knocked) unheard() bool {
	return k.trouble() == nil && k.answer.Verdict == client.Silent
}

// trouble returns why the knock could not be made or its answer not be used, if that is certain.
func (k *knocked) trouble() error {
	if k.err == nil && k.answer.Verdict == client.Silent && !errors.Is(k.answer.Err, client.ErrNoAnswer) {
		return k.answer.Err
	}
	return k.err
}

// knock knocks on each port separately, on all at once, for the first service.
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
	for _, f := range e.families { // after the loop: what to report about one depends on whether another is answered
		found = append(found, e.describeKnocks(f)...)
	}
	return found
}

// knockPorts returns the port in the address, or those of the profile.
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
	k.answer = client.Answer{Err: client.ErrNoAnswer} // if ctx ends first
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

// describeKnock reports the outcome of a knock; the text continues after the port's name.
func (e *examination) describeKnock(f *family, k *knocked) Finding {
	switch err := k.trouble(); {
	case errors.Is(err, client.ErrMismatch):
		return Finding{State: Bad, Text: ": the gateway's receipt is authentic but does not match the request: a fault of " +
			"the gateway", Advice: "tell its administrator"}
	case err != nil && e.answered():
		return Finding{State: Note, Text: " cannot be knocked on, but another address answers: " + err.Error()}
	case err != nil:
		return Finding{State: Bad, Text: " cannot be knocked on: " + err.Error(), Advice: "nothing was sent: the cause is " +
			"on this machine, or in --source"}
	case k.answered() && e.profile.Receipts:
		return Finding{State: Good, Text: " answers"}
	case k.answered() && f.wasOpen(k.service):
		return Finding{State: Note, Text: ": it is unknown whether the gateway received it: this gateway sends no " +
			"receipts, and the port was open before"}
	case k.answered() && len(f.knocks) > 1:
		return Finding{State: Good, Text: ": the port opened, perhaps by another of the knocks (this " +
			"gateway sends no receipts)"}
	case k.answered():
		return Finding{State: Good, Text: ": the port opened (this gateway sends no receipts)"}
	case k.answer.Verdict == client.Sent:
		return Finding{State: Note, Text: fmt.Sprintf(": it is unknown whether the gateway received it: this gateway "+
			"sends no receipts, and %s has no TCP port to try", k.service)}
	case f.answered():
		return Finding{State: Bad, Text: " does not answer, but other knock ports do: it is blocked on the way, or the " +
			"gateway no longer has it",
			Advice: "the others are enough; a new token has the current ports"}
	case e.answered():
		return Finding{State: Bad, Text: " does not answer, but another address does: " + f.name +
			" does not get through, is not this gateway's, or is not where this key may knock from",
			Advice: "one address is enough if connections use it"}
	}
	return Finding{State: Note, Text: " does not answer"}
}

// wasOpen reports whether a service's port accepted before the first knock.
func (f *family) wasOpen(s service.Service) bool {
	return slices.ContainsFunc(f.before, func(t touch) bool { return t.service == s && t.reach == open })
}

// receipt requests the other services, on a port that answers, and reports the gateway's answers.
func (e *examination) receipt() []Finding {
	var found []Finding
	for _, f := range e.families {
		if !f.answered() {
			continue
		}
		e.askOthers(f)
		found = append(found, e.describeWay(f)...)
		found = append(found, e.describeMoving(f)...)
		for i := range f.asked {
			found = append(found, f.describeReceipt(&f.asked[i]))
		}
	}
	return found
}

// askOthers requests each service separately: a request is granted whole or not at all, and a refusal does not say for
// which service.
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

// describeWay reports what the first receipt shows about clock and address.
func (e *examination) describeWay(f *family) []Finding {
	receipt := f.asked[0].answer.Receipt
	if receipt == nil {
		return nil
	}
	found := []Finding{clockFinding(f.asked[0].answer.Offset, "the gateway's")}
	if receipt.Source != f.local.addr {
		found = append(found, Finding{Step: StepAddress, State: Note,
			Text: fmt.Sprintf("%s: NAT translates this machine's address: packets leave from %s and arrive from %s; everyone "+
				"else behind %[3]s can also reach the port while it is open", f.name, f.local.addr, receipt.Source)})
	}
	return found
}

func (f *family) describeReceipt(k *knocked) Finding {
	switch receipt := k.answer.Receipt; {
	case k.trouble() != nil:
		return Finding{Step: StepReceipt, State: Bad, Text: fmt.Sprintf("%s: %s cannot be requested: %v",
			f.name, k.service, k.trouble())}
	case k.answer.Verdict == client.Refused:
		return Finding{Step: StepReceipt, State: Bad, Status: receipt.Status,
			Text: fmt.Sprintf("%s: the gateway refuses %s: %s", f.name, k.service, receipt.Status)}
	case receipt != nil:
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway granted %s to %s", f.name,
			k.service, receipt.Source)}
	case k.answered() && f.wasOpen(k.service):
		return Finding{Step: StepReceipt, State: Note, Text: fmt.Sprintf("%s: %s was open before, so it is unknown whether "+
			"the gateway opened it", f.name, k.service)}
	case k.answered():
		return Finding{Step: StepReceipt, State: Good, Text: fmt.Sprintf("%s: the gateway opened %s, without a receipt",
			f.name, k.service)}
	case k.answer.Verdict == client.Sent:
		return Finding{Step: StepReceipt, State: Note,
			Text: fmt.Sprintf("%s: %s was requested, but the outcome is unknown: it has no TCP port to try", f.name,
				k.service)}
	}
	return Finding{Step: StepReceipt, State: Bad,
		Text: fmt.Sprintf("%s: %s got no answer, though another service did: a gateway without receipts refused it, or "+
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
