package keys

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// networks reads what the client may let in besides its own address.
func (r *reader) networks(raw *rawClient, c *Client) {
	c.Widest4 = r.widest("widest4", raw.Widest4, CheckWidest4)
	c.Widest6 = r.widest("widest6", raw.Widest6, CheckWidest6)
	c.Delegate = r.prefixes("delegate", raw.Delegate)
	for i, p := range c.Delegate {
		if err := service.CheckNetwork(p); p.IsValid() && err != nil {
			r.must("delegate", fmt.Errorf("entry %d: %w", i+1, err))
		}
	}
}

// widest reads a length. Zero would be everybody in a file, and is no limit in a Client.
func (r *reader) widest(key string, bits *int64, check func(int) error) int {
	if bits == nil {
		return 0
	}
	n := int(*bits)
	if n == 0 {
		n = -1
	}
	r.must(key, check(n))
	return n
}

// CheckWidest4 returns why Widest4 cannot have this value, or nil.
func CheckWidest4(bits int) error { return checkWidest(bits, service.Widest4, 32) }

// CheckWidest6 returns why Widest6 cannot have this value, or nil.
func CheckWidest6(bits int) error { return checkWidest(bits, service.Widest6, service.Link6) }

func checkWidest(bits, least, most int) error {
	if bits == 0 || bits >= least && bits <= most {
		return nil
	}
	return fmt.Errorf("the length of a prefix is from %d to %d: leave it out to let in the client's own address only",
		least, most)
}

func (c *Client) writeNetworks(b *strings.Builder) {
	if c.Widest4 != 0 {
		fmt.Fprintf(b, "widest4 = %d\n", c.Widest4)
	}
	if c.Widest6 != 0 {
		fmt.Fprintf(b, "widest6 = %d\n", c.Widest6)
	}
	if len(c.Delegate) > 0 {
		fmt.Fprintf(b, "delegate = %s\n", list(prefixTexts(c.Delegate)))
	}
}

// LetsInMore reports whether the client may let in anything besides its own address.
func (c *Client) LetsInMore() bool { return c.Widest4 != 0 || c.Widest6 != 0 || len(c.Delegate) > 0 }

// Widens reports whether the client may let in this network around its own address. Its file says from where it may
// knock, too: a network with an address from where it may not is not let in.
func (c *Client) Widens(p netip.Prefix) bool {
	widest := c.Widest6
	if p.Addr().Is4() {
		widest = c.Widest4
	}
	return widest != 0 && p.Bits() >= widest && !c.denies(p) &&
		(len(c.From) == 0 || slices.ContainsFunc(c.From, func(of netip.Prefix) bool { return within(p, of) }))
}

// Lends reports whether the client may let in this network or address wherever it knocks from.
func (c *Client) Lends(p netip.Prefix) bool {
	return !c.denies(p) && slices.ContainsFunc(c.Delegate, func(of netip.Prefix) bool { return within(p, of) })
}

func (c *Client) denies(p netip.Prefix) bool { return slices.ContainsFunc(c.Deny, p.Overlaps) }

func within(p, of netip.Prefix) bool { return of.Bits() <= p.Bits() && of.Contains(p.Addr()) }
