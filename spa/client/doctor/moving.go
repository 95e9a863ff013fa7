package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// describeMoving reports if the gateway saw this machine at several addresses within moments: then the address that
// knocks need not be the one that connects.
func (e *examination) describeMoving(f *family) []Finding {
	seen := f.seen()
	if len(seen) < 2 {
		return nil
	}
	found := Finding{Step: StepAddress, State: Bad,
		Text: fmt.Sprintf("%s: NAT changes this machine's address: knocks arrive from %s; a connection may come from "+
			"another address than its knock, and is not let in then", f.name, texts(seen)),
		Advice: "send knock and connection on a path with one address (a VPN)"}
	if n, ok := around(seen); ok {
		setting := fmt.Sprintf("widest4=%d", n.Bits())
		if n.Addr().Is6() {
			setting = fmt.Sprintf("widest6=%d", n.Bits())
		}
		found.Advice = fmt.Sprintf("let in a network that has all these addresses: spa-client open %s --host %s --let-in "+
			"%s; the gateway's administrator has to allow that: %s set %s %s", f.asked[0].service, e.profile.Name, n,
			KeyTool(e.profile), e.profile.Client, setting)
	}
	return []Finding{found}
}

// seen returns the addresses at which the gateway saw this machine.
func (f *family) seen() []netip.Addr {
	var list []netip.Addr
	for _, k := range slices.Concat(f.knocks, f.asked) {
		if r := k.answer.Receipt; k.err == nil && r != nil && r.Source.IsValid() {
			list = append(list, r.Source)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

// widest4 and widest6 are the widest networks to suggest: wider ones let in too many strangers.
const widest4, widest6 = 16, 48

// around returns the narrowest network that has all addresses, or false if it is too wide.
func around(addrs []netip.Addr) (netip.Prefix, bool) {
	bits, widest := 32, widest4
	if addrs[0].Is6() {
		bits, widest = service.Link6, widest6
	}
	for ; bits >= widest; bits-- {
		n, _ := addrs[0].Prefix(bits)
		if !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !n.Contains(a) }) {
			return n, service.CheckNetwork(n) == nil
		}
	}
	return netip.Prefix{}, false
}

func texts(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return strings.Join(words, ", ")
}
