package firewall

import (
	"slices"
	"strings"
	"testing"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// everyName returns names with each byte at each place that a configuration allows.
func everyName(valid func(string) error) []string {
	var names []string
	for b := range 256 {
		for _, name := range []string{string([]byte{byte(b)}), string([]byte{byte(b), 'x', 'y'}),
			string([]byte{'x', byte(b), 'y'}), string([]byte{'x', 'y', byte(b)})} {
			if valid(name) == nil && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// TestEveryNameOfAnInterface: each name that a configuration may have means exactly that interface, in the text for
// nft and in the rules of iptables.
func TestEveryNameOfAnInterface(t *testing.T) {
	names := everyName(service.ValidInterface)
	trusting := func(c *Config) { c.Trusted = names }
	t.Run("printed", func(t *testing.T) {
		s := guarded(t, trusting)
		text := lab.Value(Rules(s.config))(s)
		want := s.listing()
		s.nft("flush ruleset\n" + text)
		if got := s.listing(); got != want {
			t.Errorf("got %s\nwant %s", got, want)
		}
		for _, name := range names {
			if !strings.Contains(want, `iifname "`+name+`" accept`) {
				t.Errorf("%q is not in the guard", name)
			}
		}
	})
	for _, k := range kinds()[1:] {
		t.Run(k.name, func(t *testing.T) {
			s := k.guarded(t, trusting)
			rules := s.program("iptables-save", "-t", "mangle")
			for _, name := range names {
				if !strings.Contains(rules, " -i "+name+" ") {
					t.Errorf("%q is not in the guard", name)
				}
			}
		})
	}
}

// TestNamesThatAreNone: an invalid name never reaches a rule.
func TestNamesThatAreNone(t *testing.T) {
	for _, name := range []string{"", "a\"b", "\"accept#", "eth*", "wg+", "ä", "a\nb", "sixteen-letters-"} {
		c := Config{Guarded: rangesOf("tcp/22"), Trusted: []string{name}}
		if text, err := Rules(c); err == nil || text != "" {
			t.Errorf("%q: got no error", name)
		}
	}
	for _, name := range []string{"a b", "a;b", "1a", "a\"b", "ä"} {
		for _, sets := range []AdmitSets{
			{Family: "inet", Table: name, Set4: "a"}, {Family: "inet", Table: "a", Set4: name},
			{Family: "inet", Table: "a", Set4: "a", Set6: name},
		} {
			c := Config{Mode: Admit, Admit: sets}
			c.setDefaults()
			if err := c.check(); err == nil {
				t.Errorf("%+v: got no error", sets)
			}
		}
	}
}
