package survey

import (
	"cmp"
	"slices"
	"strings"
)

// Restores returns a rule that copies some of these bits of the connection mark to packets, at any hook, if there is
// one.
func (r *Ruleset) Restores(bits uint32) (Place, bool) {
	var found []Place
	for _, t := range r.tables {
		if t.ours() {
			continue
		}
		for _, c := range t.chains {
			if i := slices.IndexFunc(c.rules, func(one rule) bool { return one.restores(bits) }); i >= 0 {
				found = append(found, c.place(c.rules[i], c))
			}
		}
	}
	if len(found) == 0 {
		return Place{}, false
	}
	return slices.MinFunc(found, func(a, b Place) int { return cmp.Compare(a.String(), b.String()) }), true
}

// restores reads "-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff".
func (r *savedRule) restores(bits uint32) bool {
	if _, ok := r.options["--restore-mark"]; !ok || r.target != "CONNMARK" {
		return false
	}
	for _, name := range []string{"--ctmask", "--mask"} {
		if mask, _, ok := valueAndMask(strings.Join(r.options[name], "")); ok && mask&bits == 0 {
			return false
		}
	}
	return true
}
