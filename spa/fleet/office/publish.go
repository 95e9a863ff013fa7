package office

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share"
)

// A Report is what a publish did.
type Report struct {
	Serial   int64    `json:"serial"`
	Gateways []string `json:"gateways"` // that have new bundles
	Removed  []string `json:"removed"`  // retired ones, whose bundles are removed
	Clients  int      `json:"clients"`  // in any bundle
	Bytes    int64    `json:"bytes"`
	Changes  []string `json:"changes"`
	Earlier  []string `json:"earlier"` // clients whose key a removed administrator could open
	Over     bool     `json:"-"`       // it went over a publish that this office does not know
}

// ErrNewer means that the destination has a bundle of a publish that this office does not know.
var ErrNewer = errors.New("another administrator has published since")

// A Partial is an error of a publish that began to put bundles: some gateways may have those of this serial, and the
// others keep theirs until the next publish.
type Partial struct {
	Serial int64
	Err    error
}

// Error returns the wrapped error's text.
func (p *Partial) Error() string { return p.Err.Error() }

// Unwrap returns the wrapped error.
func (p *Partial) Unwrap() error { return p.Err }

// A Destination holds the bundles that were published.
type Destination interface {
	// Lock keeps others from publishing until unlock is called, as far as it can.
	Lock() (unlock func(), err error)
	// Found returns what there is, by gateway: whole bundles, or their readable parts. It may be anything.
	Found(context.Context) (map[string][]byte, error)
	// Put replaces bundles, all of one serial, unless there is one with a serial above known. Then the error wraps
	// ErrNewer. It keeps none of them: together they can be larger than memory.
	Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error
	// Taken returns the reports of gateways on the bundles that they have taken over, by gateway, as far as there are
	// any. They may be anything.
	Taken(context.Context) (map[string][]byte, error)
	// Remove removes the bundle of a gateway.
	Remove(ctx context.Context, gateway string) error
	// Where names the bundle of a gateway for messages.
	Where(gateway string) string
}

// Publish makes a bundle for each gateway and puts them into a destination. It seals all of them before it puts one. to
// is what published.toml says about the destination. over lets it continue after a publish that this office does not
// know. If ctx ends before the first is put, nothing has changed. An error after that is a Partial.
func (o *Office) Publish(ctx context.Context, v *Vault, d Destination, to string, over bool,
	now time.Time) (*Report, error) {
	if err := o.Signs(v); err != nil {
		return nil, err
	}
	unlock, err := d.Lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	found, err := o.found(ctx, d, v.replaced)
	if err != nil {
		return nil, err
	}
	last, err := o.last(d, found, over)
	if err != nil {
		return nil, err
	}
	bundles, report, err := o.seal(ctx, v, last+1, now)
	if err != nil {
		return nil, err
	}
	defer bundles.close()
	report.Changes, report.Over = o.Changes(), over && len(o.unknown(found)) > 0
	// The serial first: killed after that, the next publish has a higher one than any bundle.
	begun := o.Published
	begun.Unfinished = append(slices.Clone(begun.Unfinished), Begun{last + 1, second(now)})
	begun.Unfinished = begun.Unfinished[max(0, len(begun.Unfinished)-maxBegun):]
	begun.Taken = o.Published.withProofs(o.Active(), last+1, bundles.taken)
	if err := write(o.path(publishedFile), begun.text(), place.EitherWay); err != nil {
		return nil, err
	}
	known := last
	if over {
		known = math.MaxInt64
	}
	err = d.Put(ctx, bundles.all(), known)
	if errors.Is(err, ErrNewer) { // nothing was put
		return nil, errors.Join(err, o.writePublished())
	}
	if err == nil {
		report.Removed, err = o.removeRetired(ctx, d, found)
	}
	if err == nil {
		done := Published{Serial: last + 1, Time: second(now), By: v.me, To: to, Taken: begun.Taken}
		done.Gateways, done.Clients = o.state()
		err = write(o.path(publishedFile), done.text(), place.EitherWay)
	}
	if err != nil {
		return nil, &Partial{last + 1, err}
	}
	return report, nil
}

// removeRetired removes the bundles of retired gateways, and returns whose.
func (o *Office) removeRetired(ctx context.Context, d Destination, found map[string]Found) ([]string, error) {
	removed := []string{}
	for _, g := range o.Gateways {
		if _, there := found[g.Name]; there && !g.Retired.IsZero() {
			if err := d.Remove(ctx, g.Name); err != nil {
				return nil, err
			}
			removed = append(removed, g.Name)
		}
	}
	return removed, nil
}

// Signs returns an error if the vault's key is not the one that office.toml names.
func (o *Office) Signs(v *Vault) error {
	if !v.public().Equal(o.Key) {
		return problem(o.path(officeFile), "its key is not that of the vault: spa-fleet rotate-key was interrupted, or "+
			"the file was edited")
	}
	return nil
}

// writePublished writes published.toml as it was read.
func (o *Office) writePublished() error {
	if o.Published.Serial == 0 && len(o.Published.Unfinished) == 0 {
		return remove(o.path(publishedFile))
	}
	return write(o.path(publishedFile), o.Published.text(), place.EitherWay)
}

// knows reports whether a bundle is of the last publish of this office, of an earlier one, or of one that it began
// since. Of two publishes at once, both have the same serial.
func (o *Office) knows(h *fleet.Head) bool {
	p := o.Published
	return h.Serial < p.Serial || h.Serial == p.Serial && h.Issued.Equal(p.Time) ||
		slices.ContainsFunc(p.Unfinished, func(b Begun) bool { return h.Serial == b.Serial && h.Issued.Equal(b.Time) })
}

// unknown returns the gateways with bundles that this office does not know, sorted.
func (o *Office) unknown(found map[string]Found) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if b := found[name]; b.Head != nil && !o.knows(b.Head) {
			list = append(list, name)
		}
	}
	return list
}

// last returns the highest serial in the destination or in the office. If the destination has a bundle that the office
// does not know, that is the error, unless over is set. No gateway compares the serial of a bundle with that of one
// whose key was replaced: an administrator who has left could set it to the highest.
func (o *Office) last(d Destination, found map[string]Found, over bool) (int64, error) {
	last := o.newest()
	for _, name := range o.unknown(found) {
		b := found[name]
		switch {
		case !over && b.Head.Serial == o.Published.Serial:
			return 0, fmt.Errorf("%s has serial %d, and is not of the publish of this office with that serial: %w",
				d.Where(name), b.Head.Serial, ErrNewer)
		case !over:
			return 0, fmt.Errorf("%s has serial %d, and the last publish of this office was %d: %w", d.Where(name),
				b.Head.Serial, o.Published.Serial, ErrNewer)
		case !b.Replaced:
			last = max(last, b.Head.Serial)
		}
	}
	if last >= math.MaxInt64-1 {
		return 0, problem(o.path(publishedFile), "there is no higher serial")
	}
	return last, nil
}

// seal makes the bundles of all gateways.
func (o *Office) seal(ctx context.Context, v *Vault, serial int64, now time.Time) (*spool, *Report, error) {
	gateways := o.Active()
	if len(gateways) == 0 {
		return nil, nil, errors.New("the office has no gateway")
	}
	ks, err := o.keys(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	if err := o.readBack(ks); err != nil {
		return nil, nil, err
	}
	report := &Report{Serial: serial, Earlier: []string{}}
	for i, k := range ks {
		if !k.current {
			report.Earlier = append(report.Earlier, o.Clients[i].Name)
		}
		if o.Clients[i].Revoked.IsZero() {
			report.Clients++
		}
	}
	sealer := fleet.Seal{Fleet: o.Fleet, Key: *v.signing}
	bundles, err := o.newSpool(len(gateways))
	if err != nil {
		return nil, nil, err
	}
	err = parallel(ctx, len(gateways), func(i int) error {
		c, err := o.contents(v, gateways[i], ks)
		if err != nil {
			return err
		}
		b, err := sealer.Seal(gateways[i].Name, gateways[i].Recipient, serial, now, c)
		if err != nil {
			return err
		}
		return bundles.add(i, b)
	})
	if err != nil {
		return nil, nil, errors.Join(err, bundles.close())
	}
	for _, g := range gateways {
		report.Gateways = append(report.Gateways, g.Name)
	}
	report.Bytes = bundles.end.Load()
	return bundles, report, nil
}

// readBack returns an error unless a gateway can read each client: otherwise it would refuse the whole bundle.
func (o *Office) readBack(ks []opened) error {
	parse := keys.ClientParser()
	var problems []error
	for i, k := range ks {
		c := o.Clients[i].Terms.At(o.Fleet.Server("any"), k.FleetKey) // only ids and keys differ between gateways
		if _, err := parse(c.Name, c.Text()); err != nil {
			problems = append(problems, problem(o.termsPath(c.Name), "no gateway could read this client: %v", err))
		}
	}
	return errors.Join(problems...)
}

// contents returns what a gateway is told.
func (o *Office) contents(v *Vault, g *Gateway, ks []opened) (*fleet.Contents, error) {
	server := o.Fleet.Server(g.Place())
	c := &fleet.Contents{Site: g.Place(), Gates: keys.Gates{Current: v.gate.At(server)}}
	if g.Site.Name != "" {
		c.Share = share.DeriveKey(v.share[:], server)
	}
	of := make(map[keys.ID]string, len(ks))
	for i, k := range ks {
		t := o.Clients[i].Terms
		if len(t.Gateways) > 0 && !slices.Contains(t.Gateways, c.Site) {
			continue
		}
		// A revoked client stays, as in a file: otherwise a file of its name would count again. So does a key that has
		// ended: the gateway must end its grants, even if it did not run then.
		client := t.At(server, k.FleetKey)
		for _, id := range client.IDs() {
			if other := of[id]; other != "" {
				return nil, fmt.Errorf("%w: clients %s and %s at %s", ErrSameID, other, client.Name, c.Site)
			}
			of[id] = client.Name
		}
		c.Clients = append(c.Clients, client)
	}
	return c, nil
}

// ErrSameID means that two clients have one id at a gateway: one of them needs a new key.
var ErrSameID = errors.New("two clients have the same id")

// A Found is a bundle in a destination.
type Found struct {
	Head     *fleet.Head // nil: it is damaged, or not of this office
	Replaced bool        // it is signed with a key that was replaced
	Problem  string      // why; or empty
}

// found says what is in a destination. Earlier are public keys of this office that were replaced.
func (o *Office) found(ctx context.Context, d Destination, earlier []string) (map[string]Found, error) {
	there, err := d.Found(ctx)
	if err != nil {
		return nil, err
	}
	found := make(map[string]Found, len(there))
	for name, text := range there {
		if service.ValidName(name) != nil {
			continue // it may be made for the terminal that shows it
		}
		b, err := fleet.ParseReadable(text)
		if err != nil {
			b, err = fleet.Parse(text)
		}
		if err != nil {
			found[name] = Found{Problem: err.Error()}
			continue
		}
		if b.Fleet != o.Fleet {
			return nil, problem(d.Where(name), "a bundle of another fleet: publish into a directory of its own")
		}
		replaced := false
		for i, key := range append([]string{base64Key(o.Key)}, earlier...) {
			replaced = i > 0
			public, keyErr := fleet.ParseOfficeKey(key)
			if err = keyErr; err == nil {
				err = (fleet.Office{Fleet: o.Fleet, Key: public}).Verify(b, name)
			}
			if err == nil {
				break
			}
		}
		if err != nil {
			found[name] = Found{Problem: err.Error()}
			continue
		}
		found[name] = Found{Head: &b.Head, Replaced: replaced}
	}
	return found, nil
}

// Destination returns the directory of the last publish, or what else --to named; empty if there was none.
func (o *Office) Destination() string {
	if o.Published.To == "" || filepath.IsAbs(o.Published.To) || strings.Contains(o.Published.To, "://") {
		return o.Published.To
	}
	return filepath.Join(o.Dir, o.Published.To)
}
