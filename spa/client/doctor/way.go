package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/client"
)

type localAddr struct {
	addr netip.Addr
	err  error
}

func byName(names []string) []service.Service {
	slices.Sort(names)
	services := make([]service.Service, len(names))
	for i, name := range names {
		services[i] = service.Service{Name: name}
	}
	return services
}

// name looks up the gateway in each family.
func (e *examination) name() []Finding {
	host, _, err := service.SplitAddress(e.profile.Address)
	if err != nil {
		e.over = true
		return []Finding{{Step: StepName, State: Bad, Text: err.Error(), Advice: "import the token again"}}
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		e.families = []*family{newFamily(addr.Unmap())}
		return []Finding{{Step: StepName, State: Good, Text: fmt.Sprintf("%s is %s: no name to look up", e.profile.Name,
			host)}}
	}
	var found []Finding
	for _, network := range []string{"ip4", "ip6"} {
		found = append(found, e.lookup(network, host))
	}
	if len(e.families) > 0 {
		for i := range found {
			if found[i].State == Note {
				found[i].Text += ": every knock waits for this first"
			}
		}
		return slices.DeleteFunc(found, func(f Finding) bool { return f.State == Bad })
	}
	if e.missing == len(found) {
		if addrs := client.Getent(e.ctx, host); len(addrs) > 0 {
			e.look(addrs)
			return []Finding{{Step: StepName, State: Good,
				Text: fmt.Sprintf("%s is %s, by getent (nsswitch.conf), but not in DNS", host, list(addrs))}}
		}
	}
	e.over, found[0].State = true, Bad
	found[0].Text = fmt.Sprintf("%s does not resolve: %s", host, e.unresolved)
	found[0].Advice = "check the name, and that this machine has a working resolver; the profile may contain an " +
		"address instead of the name"
	return found[:1]
}

// look keeps the first few addresses of each family, to check them.
func (e *examination) look(addrs []netip.Addr) {
	for _, is4 := range []bool{true, false} {
		same := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Unmap().Is4() != is4 })
		for _, a := range same[:min(mostAddresses, len(same))] {
			f := newFamily(a.Unmap())
			if len(same) > 1 {
				f.name += " " + f.gateway
			}
			e.families = append(e.families, f)
		}
	}
}

func list(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.Unmap().String()
	}
	return strings.Join(texts, ", ")
}

// mostAddresses is how many addresses of each family are checked. Few gateways have more than one.
const mostAddresses = 3

// lookup looks up one family and keeps its addresses.
func (e *examination) lookup(network, host string) Finding {
	ctx, cancel := context.WithTimeout(e.ctx, e.options.Timeout)
	defer cancel()
	name := map[string]string{"ip4": "IPv4", "ip6": "IPv6"}[network]
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() != (network == "ip4") })
	if err != nil || e.unresolved == "" {
		e.unresolved = lookupCause(err)
	}
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		e.missing++
	}
	if errors.As(err, &dns) && dns.IsTimeout {
		return Finding{Step: StepName, State: Note, Text: fmt.Sprintf("%s has no known %s address (%s)", host, name,
			lookupCause(err))}
	}
	if err != nil || len(addrs) == 0 {
		return Finding{Step: StepName, State: Bad, Text: fmt.Sprintf("%s has no %s address (%s)",
			host, name, lookupCause(err))}
	}
	e.look(addrs)
	return Finding{Step: StepName, State: Good, Text: fmt.Sprintf("%s is %s (%s)", host, list(addrs), name)}
}

// lookupCause returns why a lookup failed, without the names and servers around it.
func lookupCause(err error) string {
	var dns *net.DNSError
	switch {
	case err == nil:
		return "it has no address"
	case errors.As(err, &dns) && dns.IsTimeout:
		return "the resolver does not answer"
	case errors.As(err, &dns):
		return dns.Err
	}
	return err.Error()
}

func newFamily(gateway netip.Addr) *family {
	f := &family{name: "IPv6", gateway: gateway.String()}
	if gateway.Is4() {
		f.name = "IPv4"
	}
	return f
}

func (f *family) addr() netip.Addr { return netip.MustParseAddr(f.gateway) }

// address finds out which address packets leave from, and whether the gateway can see it.
func (e *examination) address() []Finding {
	found := e.leaveOut()
	for _, f := range e.families {
		f.local = ownAddress(netip.AddrPortFrom(f.addr(), e.knockPorts()[0]))
		found = append(found, f.describeLocal())
	}
	e.families = slices.DeleteFunc(e.families, func(f *family) bool { return f.local.err != nil })
	if e.over = len(e.families) == 0; e.over {
		return found
	}
	for i := range found { // one family is enough
		if found[i].State == Bad {
			found[i].State = Note
		}
	}
	return found
}

// leaveOut drops the families that cannot be used because the stated address is of the other one.
func (e *examination) leaveOut() []Finding {
	source := e.options.Source.String()
	if source == "" {
		source = e.profile.Source
	}
	stated, err := netip.ParseAddr(source)
	if err != nil {
		return nil // it is another kind of source
	}
	var found []Finding
	e.families = slices.DeleteFunc(e.families, func(f *family) bool {
		other := f.addr().Is4() != stated.Unmap().Is4()
		if other {
			found = append(found, Finding{Step: StepAddress, State: Bad,
				Text: fmt.Sprintf("%s: %s is skipped: the source to state, %s, is of the other family",
					f.name, f.gateway, stated),
				Advice: "choose the address with --source"})
		}
		return other
	})
	return found
}

func (f *family) describeLocal() Finding {
	switch {
	case f.local.err != nil:
		return Finding{Step: StepAddress, State: Bad, Text: fmt.Sprintf("%s: this machine has no route to %s: %v",
			f.name, f.gateway, f.local.err),
			Advice: "check that the network is up"}
	case client.NAT64(f.addr()):
		return Finding{Step: StepAddress, State: Note, Text: fmt.Sprintf("%s: packets leave from %s, and %s leads through "+
			"a translator to IPv4 (NAT64): the gateway sees an IPv4 address", f.name, f.local.addr, f.gateway),
			Advice: "state no address: --source observed"}
	case client.Routable(f.local.addr):
		return Finding{Step: StepAddress, State: Good, Text: fmt.Sprintf("%s: this machine has the public address %s; the "+
			"gateway sees it too, unless there is NAT on the way", f.name, f.local.addr)}
	}
	return Finding{Step: StepAddress, State: Good,
		Text: fmt.Sprintf("%s: this machine has the private address %s; through NAT the gateway sees another one", f.name,
			f.local.addr)}
}

// ownAddress returns the address from which packets to a destination leave. It sends none.
func ownAddress(to netip.AddrPort) localAddr {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return localAddr{err: err}
	}
	defer conn.Close()
	return localAddr{addr: conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")}
}

// clock asks the given time server.
func (e *examination) clock() []Finding {
	if e.options.Clock == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(e.ctx, e.options.Timeout)
	defer cancel()
	behind, err := e.options.Clock(ctx)
	if err != nil {
		return []Finding{{Step: StepClock, State: Note, Text: "the time server did not answer: " + err.Error()}}
	}
	e.behind = &behind
	return []Finding{clockFinding(behind, "the time server's")}
}

// clockFinding reports how far this machine's clock is behind another.
func clockFinding(behind time.Duration, than string) Finding {
	f := Finding{Step: StepClock, State: Good, Text: fmt.Sprintf("this machine's clock agrees with %s", than)}
	if behind.Abs() < time.Second {
		return f
	}
	word := "behind"
	if behind < 0 {
		word = "ahead of"
	}
	f.Text = fmt.Sprintf("this machine's clock is %s %s %s", behind.Abs().Round(time.Second), word, than)
	f.Advice = "keep it right with NTP"
	const ignored = ": a gateway ignores knocks that are off by more than %s, unless configured otherwise"
	switch {
	case behind.Abs() >= tolerance:
		f.State = Bad
		f.Text += fmt.Sprintf(ignored, tolerance)
	case behind.Abs() >= tolerance/2:
		f.State = Note
		f.Text += fmt.Sprintf(ignored, tolerance)
	default:
		f.Advice = ""
	}
	return f
}
