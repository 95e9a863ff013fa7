package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// terms are the limits of a new client, as given on the command line.
type terms struct {
	when, from      []string
	delegate        []string
	widest4         int
	widest6         int
	expires, maxFor string
	requireSource   bool
}

func (t *terms) flags(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&t.when, "when", nil, "`SPAN`s of days and hours in which it may open, by the gateway's clock: "+
		"\"mon-fri 08:00-18:00\"")
	flags.StringSliceVar(&t.from, "from", nil, "`NETWORK`s that it may knock from: 203.0.113.0/24")
	flags.IntVar(&t.widest4, "widest4", 0, "the widest IPv4 network around its own address that it may let in, as a "+
		"prefix `LENGTH`: 24")
	flags.IntVar(&t.widest6, "widest6", 0, "the same for IPv6, as a prefix `LENGTH`: 56")
	flags.StringSliceVar(&t.delegate, "delegate", nil, "`NETWORK`s that it may let in from any address: "+
		"203.0.113.0/24")
	flags.StringVar(&t.expires, "expires", "", "`TIME` when the key expires: 12h, 90d, 2027-01-31 (when that day begins, "+
		"local time), or 2027-01-31T18:00:00Z")
	flags.StringVar(&t.maxFor, "max-for", "", "the longest `DURATION` that it may open for: 10m")
	flags.BoolVar(&t.requireSource, "require-source", false, "refuse requests that do not state their address; "+
		"not for clients behind NAT")
}

// apply parses the terms into the client.
func (t *terms) apply(c *keys.Client, now time.Time) error {
	c.RequireSource = t.requireSource
	return errors.Join(t.readWhen(c), t.readFrom(c), t.readNetworks(c), t.readExpires(c, now),
		t.readMaxFor(c))
}

func (t *terms) readWhen(c *keys.Client) (err error) {
	if len(t.when) == 0 {
		return nil
	}
	c.When, err = service.ParseSpans(t.when)
	return misuseOf("--when", err)
}

func (t *terms) readFrom(c *keys.Client) error {
	for _, text := range t.from {
		prefix, err := service.ParsePrefix(text)
		if err != nil {
			return misuseOf(fmt.Sprintf("--from %q", text), err)
		}
		c.From = append(c.From, prefix)
	}
	return nil
}

func (t *terms) readNetworks(c *keys.Client) error {
	for _, text := range t.delegate {
		network, err := service.ParseNetwork(text)
		if err != nil {
			return misuseOf(fmt.Sprintf("--delegate %q", text), err)
		}
		c.Delegate = append(c.Delegate, network)
	}
	c.Widest4, c.Widest6 = t.widest4, t.widest6
	return errors.Join(misuseOf(fmt.Sprintf("--widest4 %d", t.widest4), keys.CheckWidest4(t.widest4)),
		misuseOf(fmt.Sprintf("--widest6 %d", t.widest6), keys.CheckWidest6(t.widest6)))
}

func (t *terms) readMaxFor(c *keys.Client) (err error) {
	if t.maxFor == "" {
		return nil
	}
	c.MaxFor, err = service.ParseDuration(t.maxFor)
	return misuseOf(fmt.Sprintf("--max-for %q", t.maxFor), err)
}

// leastExpires is the shortest time that a new key may be valid: a shorter one is a mistake.
const leastExpires = time.Minute

// readExpires reads when the key expires. A time in the past is a mistake.
func (t *terms) readExpires(c *keys.Client, now time.Time) (err error) {
	if t.expires == "" {
		return nil
	}
	c.Expires, err = parseExpires(t.expires, now)
	if err == nil && !c.Expires.After(now) {
		err = errors.New("this time is in the past")
	}
	return misuseOf(fmt.Sprintf("--expires %q", t.expires), err)
}

// parseExpires parses a time from now, a day, or a point in time.
func parseExpires(text string, now time.Time) (time.Time, error) {
	var span overlapFlag
	if err := span.Set(text); err == nil && time.Duration(span) >= leastExpires {
		return span.end(now), nil
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

// shorter returns the services whose maximum is less than the client's max_for, and so limits it.
func shorter(c *config.Config, client *keys.Client) []string {
	var found []string
	for _, entry := range client.Allow {
		if most, ok := mostFor(c, entry); ok && client.MaxFor > most {
			found = append(found, entry+" "+service.FormatDuration(most))
		}
	}
	return found
}

// warnShorter warns if services limit the client's max_for.
func warnShorter(cmd *cobra.Command, c *config.Config, client *keys.Client) {
	if limits := shorter(c, client); len(limits) > 0 {
		cli.Warn(cmd, "max_for %s exceeds what the services allow, and they limit it: %s; raise max_for in %s if that is "+
			"intended", service.FormatDuration(client.MaxFor), strings.Join(limits, ", "),
			filepath.Join(c.Dir, config.FileName))
	}
}

// mostFor returns the longest time for which any client may open an entry of allow. If several services share the port
// it is the shortest of theirs, as for the policy.
func mostFor(c *config.Config, entry string) (most time.Duration, ok bool) {
	ports, err := service.ParsePorts(entry)
	for _, s := range c.Services {
		overlaps := err == nil && slices.ContainsFunc(s.Ports, func(p service.Ports) bool {
			return p.Proto == ports.Proto && p.Low <= ports.High && ports.Low <= p.High
		})
		if (overlaps || s.Name == entry) && (!ok || s.MaxFor < most) {
			most, ok = s.MaxFor, true
		}
	}
	return most, ok
}

func misuseOf(flag string, err error) error {
	if err == nil {
		return nil
	}
	return cli.Misuse(fmt.Errorf("%s: %w", flag, err), "")
}
