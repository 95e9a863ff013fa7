package enrol

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
)

// Terms are the limits of a new client, as given on the command line.
type Terms struct {
	When, From      []string
	Delegate        []string
	Widest4         int
	Widest6         int
	Expires, MaxFor string
	RequireSource   bool
	Browser         bool // see ForBrowser
}

// Flags adds the flags of the terms to a command.
func (t *Terms) Flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&t.When, "when", nil, "`SPAN`s of days and hours in which it may open, by the gateway's clock: "+
		"\"mon-fri 08:00-18:00\"")
	flags.StringSliceVar(&t.From, "from", nil, "`NETWORK`s that it may knock from: 203.0.113.0/24")
	flags.IntVar(&t.Widest4, "widest4", 0, "the widest IPv4 network around its own address that it may let in, as a "+
		"prefix `LENGTH`: 24")
	flags.IntVar(&t.Widest6, "widest6", 0, "the same for IPv6, as a prefix `LENGTH`: 56")
	flags.StringSliceVar(&t.Delegate, "delegate", nil, "`NETWORK`s that it may let in from any address: "+
		"203.0.113.0/24")
	flags.StringVar(&t.Expires, "expires", "", "`TIME` when the key expires: 12h, 90d, 2027-01-31 (when that day begins, "+
		"local time), or 2027-01-31T18:00:00Z")
	flags.StringVar(&t.MaxFor, "max-for", "", "the longest `DURATION` that it may open for: 10m")
	flags.BoolVar(&t.RequireSource, "require-source", false, "refuse requests that do not state their address; "+
		"not for clients behind NAT")
	flags.BoolVar(&t.Browser, "for-browser", false, "make a key for the page of \"spa-keygen page\": it expires in "+
		browserExpires+" and opens for at most "+browserMaxFor+", unless --expires and --max-for say otherwise")
}

// Apply parses the terms into the client.
func (t *Terms) Apply(c *keys.Client, now time.Time) error {
	c.RequireSource = t.RequireSource
	return errors.Join(t.readWhen(c), t.readFrom(c), t.readNetworks(c), t.readExpires(c, now),
		t.readMaxFor(c))
}

func (t *Terms) readWhen(c *keys.Client) (err error) {
	if len(t.When) == 0 {
		return nil
	}
	c.When, err = service.ParseSpans(t.When)
	return misuseOf("--when", err)
}

func (t *Terms) readFrom(c *keys.Client) error {
	for _, text := range t.From {
		prefix, err := service.ParsePrefix(text)
		if err != nil {
			return misuseOf(fmt.Sprintf("--from %q", text), err)
		}
		c.From = append(c.From, prefix)
	}
	return nil
}

func (t *Terms) readNetworks(c *keys.Client) error {
	for _, text := range t.Delegate {
		network, err := service.ParseNetwork(text)
		if err != nil {
			return misuseOf(fmt.Sprintf("--delegate %q", text), err)
		}
		c.Delegate = append(c.Delegate, network)
	}
	c.Widest4, c.Widest6 = t.Widest4, t.Widest6
	return errors.Join(misuseOf(fmt.Sprintf("--widest4 %d", t.Widest4), keys.CheckWidest4(t.Widest4)),
		misuseOf(fmt.Sprintf("--widest6 %d", t.Widest6), keys.CheckWidest6(t.Widest6)))
}

func (t *Terms) readMaxFor(c *keys.Client) (err error) {
	if t.MaxFor == "" {
		return nil
	}
	c.MaxFor, err = service.ParseDuration(t.MaxFor)
	return misuseOf(fmt.Sprintf("--max-for %q", t.MaxFor), err)
}

// leastExpires is the shortest time that a new key may be valid: a shorter one is a mistake.
const leastExpires = time.Minute

// readExpires reads when the key expires. A time in the past is a mistake.
func (t *Terms) readExpires(c *keys.Client, now time.Time) (err error) {
	if t.Expires == "" {
		return nil
	}
	c.Expires, err = ParseExpires(t.Expires, now)
	if err == nil && !c.Expires.After(now) {
		err = errors.New("this time is in the past")
	}
	return misuseOf(fmt.Sprintf("--expires %q", t.Expires), err)
}

// ParseExpires parses a time from now, a day, or a point in time.
func ParseExpires(text string, now time.Time) (time.Time, error) {
	var span Overlap
	if err := span.Set(text); err == nil && time.Duration(span) >= leastExpires {
		return span.End(now), nil
	}
	at, err := time.ParseInLocation(time.DateOnly, text, now.Location())
	if err != nil {
		at, err = time.Parse(time.RFC3339, text)
	}
	if err != nil {
		return time.Time{}, errors.New("write it as 12h, 90d, 2027-01-31 or 2027-01-31T18:00:00Z; the minimum is 1m")
	}
	return at.UTC(), nil
}

func misuseOf(flag string, err error) error {
	if err == nil {
		return nil
	}
	return cli.Misuse(fmt.Errorf("%s: %w", flag, err), "")
}
