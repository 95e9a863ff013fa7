package nftables

import (
	"fmt"
	"slices"
	"strings"

	nft "github.com/google/nftables"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/ledger"
	"sallyport/keys/service"
)

// Text returns the guard in nft's language, without grants: the sets and rules that a load would make.
func Text(spec guard.Spec) string {
	d := newDraft(NewObjects(spec.Size), spec, spec.Closed, nil)
	d.addRules(false)
	var w text
	w.line("# The guard, as \"spa-server guard --print\" writes it for a host that loads its rules from a file:")
	w.line("# include this file there, after the flush. server.toml needs, under [firewall]: persist = \"file\"")
	w.line("# Print it again when services, knock ports or [firewall] change.")
	w.line("table inet %s", TableName)
	w.line("delete table inet %s", TableName)
	w.open("table inet %s", TableName)
	elements := d.printedElements()
	for _, s := range d.madeOf(slices.Concat(d.Sets(), d.Learned())) {
		w.set(s, elements[s])
	}
	for _, c := range d.Chains() {
		if d.needs(c) {
			w.chain(c, d.printed[c])
		}
	}
	w.shut()
	return w.String()
}

// text builds lines of nft's language.
type text struct {
	strings.Builder
	depth int
}

func (w *text) line(format string, args ...any) {
	w.WriteString(strings.Repeat("\t", w.depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

func (w *text) open(format string, args ...any) {
	w.line(format+" {", args...)
	w.depth++
}

func (w *text) shut() {
	w.depth--
	w.line("}")
}

func (w *text) set(s *nft.Set, elements []string) {
	w.open("set %s", s.Name)
	w.line("type %s", s.KeyType.Name)
	if s.Size > 0 {
		w.line("size %d", s.Size)
	}
	if s.Dynamic {
		w.line("flags dynamic,timeout")
	} else {
		w.line("flags timeout")
	}
	if len(elements) > 0 {
		w.line("elements = { %s }", strings.Join(elements, ", "))
	}
	w.shut()
}

// hooks are nft's words for the hooks of chains.
var hooks = map[*nft.ChainHook]string{
	nft.ChainHookPrerouting: "prerouting", nft.ChainHookInput: "input", nft.ChainHookForward: "forward",
	nft.ChainHookOutput: "output", nft.ChainHookPostrouting: "postrouting",
}

func (w *text) chain(c *nft.Chain, rules []string) {
	w.open("chain %s", c.Name)
	if c.Hooknum != nil {
		w.line("type %s hook %s priority %d; policy accept;", c.Type, hooks[c.Hooknum], *c.Priority)
	}
	for _, r := range rules {
		w.line("%s", r)
	}
	w.shut()
}

// printedElements returns the elements that the configuration names, by set.
func (d *Draft) printedElements() map[*nft.Set][]string {
	elements := map[*nft.Set][]string{d.Guarded: printedPorts(d.spec.Guarded), d.cut: printedPorts(d.spec.Cut),
		d.once.ports: printedPorts(d.spec.Once)}
	for _, t := range d.spec.Targets {
		for _, a := range t.Addresses {
			addresses, targets := d.addresses4, d.targets4
			if a = guard.Normal(a); a.Is6() {
				addresses, targets = d.addresses6, d.targets6
			}
			elements[addresses] = append(elements[addresses], a.String())
			for _, port := range printedPorts(t.Ports) {
				elements[targets] = append(elements[targets], a.String()+" . "+port)
			}
		}
	}
	return elements
}

func printedPorts(ranges []service.Ports) []string {
	var list []string
	all := ledger.Holding{Ports: ranges}
	all.Each(func(e guard.Element) { list = append(list, fmt.Sprintf("%v . %d", e.Proto, e.Port)) })
	return list
}
