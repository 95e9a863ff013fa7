package office

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
)

// A Client is what the office has of a client: its terms, and its key, which is sealed.
type Client struct {
	*keys.Terms
	text   []byte // the terms
	sealed []byte // the key
}

func trimmed(text []byte) []byte { return bytes.TrimSpace(text) }

func base64Key(k ed25519.PublicKey) string { return base64.StdEncoding.EncodeToString(k) }

func (o *Office) readClients() error {
	terms, err := names(o.path(clientsDir), keys.Suffix)
	if err != nil {
		return err
	}
	sealed, err := names(o.path(clientsDir), sealedSuffix)
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range sealed {
		if _, ok := slices.BinarySearch(terms, name); !ok {
			problems = append(problems, problem(o.keyPath(name), "a key without terms: %s%s is missing; remove it if a "+
				"command that was making the client was killed", name, keys.Suffix))
		}
	}
	parse := keys.TermsParser()
	o.Clients = make([]*Client, 0, len(terms))
	for _, name := range terms {
		if _, ok := slices.BinarySearch(sealed, name); !ok {
			problems = append(problems, problem(o.termsPath(name), "terms without a key: %s%s is missing", name, sealedSuffix))
			continue
		}
		c, err := o.readClient(name, parse)
		o.Clients, problems = append(o.Clients, c), append(problems, err)
	}
	return errors.Join(problems...)
}

func (o *Office) readClient(name string, parse func(path, name string, text []byte) (*keys.Terms, error)) (*Client,
	error) {
	text, err := read(o.termsPath(name), maxFile)
	if err != nil {
		return nil, err
	}
	t, err := parse(o.termsPath(name), name, text)
	if err != nil {
		return nil, err
	}
	sealed, err := read(o.keyPath(name), maxFile)
	if err != nil {
		return nil, err
	}
	return &Client{t, text, sealed}, nil
}

// checkClients checks what clients' terms say about the fleet.
func (o *Office) checkClients() error {
	known := make(map[string]*Gateway, len(o.Gateways)) // sites too, by one of their members
	for _, g := range o.Gateways {
		known[g.Name], known[g.Place()] = g, g
	}
	var problems []error
	for _, c := range o.Clients {
		problems = append(problems, o.checkTerms(c.Terms, known))
	}
	return errors.Join(problems...)
}

func (o *Office) checkTerms(t *keys.Terms, known map[string]*Gateway) error {
	var problems []error
	for _, entry := range t.Allow {
		if err := o.CheckAllow(entry); err != nil {
			problems = append(problems, &place.FileError{File: o.termsPath(t.Name), Key: "allow",
				Text: fmt.Sprintf("%s: %v: [services] in %s lists them", entry, err, officeFile)})
		}
	}
	for _, name := range t.Gateways {
		text := ""
		switch g := known[name]; {
		case g == nil:
			text = "there is no gateway " + name
		case g.Place() != name:
			text = fmt.Sprintf("gateway %s is a member of site %s: name the site", name, g.Place())
		}
		if text != "" {
			problems = append(problems, &place.FileError{File: o.termsPath(t.Name), Key: "gateways", Text: text})
		}
	}
	return errors.Join(problems...)
}

// Client returns the client of this name, or nil.
func (o *Office) Client(name string) *Client {
	i, ok := sort.Find(len(o.Clients), func(i int) int { return strings.Compare(name, o.Clients[i].Name) })
	if !ok {
		return nil
	}
	return o.Clients[i]
}

func (o *Office) known(name string) (*Client, error) {
	if c := o.Client(name); c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("client %s: %w", name, ErrUnknown)
}

// an opened is a client's key.
type opened struct {
	*keys.FleetKey
	current bool // sealed to the vault as it is now
}

// key opens a client's key.
func (o *Office) key(v *Vault, c *Client) (opened, error) {
	path := o.keyPath(c.Name)
	for i, id := range v.identities() {
		text, err := unseal(path, c.sealed, id)
		if errors.Is(err, errNotFor) {
			continue
		}
		if err != nil {
			return opened{}, err
		}
		k, err := keys.ParseFleetKey(path, text)
		if err == nil && k.Client != c.Name {
			err = problem(path, "the key of another client")
		}
		return opened{k, i == 0}, err
	}
	return opened{}, problem(path, "not sealed to this office's vault")
}

// keys opens the keys of all clients, in their order.
func (o *Office) keys(ctx context.Context, v *Vault) ([]opened, error) {
	list := make([]opened, len(o.Clients))
	err := parallel(ctx, len(o.Clients), func(i int) (err error) {
		list[i], err = o.key(v, o.Clients[i])
		return err
	})
	return list, err
}

// parallel calls do for 0 to n-1, several at once, and returns all errors. Once ctx ends it begins no more and returns
// why.
func parallel(ctx context.Context, n int, do func(i int) error) error {
	errs := make([]error, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(n) && ctx.Err() == nil; i = next.Add(1) - 1 {
				errs[i] = do(int(i))
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.Join(errs...)
}

func (o *Office) writeKey(v *Vault, name string, k *keys.FleetKey, how place.Placing) error {
	sealed, err := seal(k.Text(), v.own.Recipient())
	if err != nil {
		return err
	}
	return write(o.keyPath(name), sealed, how)
}

// Profile returns what a client must know.
func (o *Office) Profile(v *Vault, t *keys.Terms, k *keys.FleetKey) *keys.Profile {
	addresses := o.Addresses()
	if len(t.Gateways) > 0 {
		for name := range addresses {
			if !slices.Contains(t.Gateways, name) {
				delete(addresses, name)
			}
		}
	}
	if len(addresses) > keys.MaxGateways && o.Domain != "" { // the domain has those
		for name, address := range addresses {
			if address == name+"."+o.Domain {
				delete(addresses, name)
			}
		}
	}
	return o.profile(k, v.gate, t.Allow, addresses)
}

// NewClient makes a client. give hands out its token: if it fails, no client was made.
func (o *Office) NewClient(v *Vault, t *keys.Terms, give func(*keys.Profile) error) error {
	if o.Client(t.Name) != nil {
		return fmt.Errorf("client %s %w", t.Name, place.ErrExists)
	}
	if _, err := keys.ParseTerms(o.termsPath(t.Name), t.Name, t.Text()); err != nil {
		return err
	}
	next := *o
	next.Clients = []*Client{{Terms: t}}
	if err := next.checkClients(); err != nil {
		return err
	}
	k := &keys.FleetKey{Client: t.Name, Key: keys.NewKey()}
	p := o.Profile(v, t, k)
	if err := p.Valid(); err != nil {
		return err
	}
	err := o.writeKey(v, t.Name, k, place.OnlyNew)
	if err == nil {
		err = write(o.termsPath(t.Name), t.Text(), place.OnlyNew)
	}
	if err == nil {
		err = give(p)
	}
	if err != nil {
		return errors.Join(err, remove(o.termsPath(t.Name)), remove(o.keyPath(t.Name)))
	}
	return nil
}

// SetClient changes settings of a client as keys.SetTerms does, and returns its terms as they are then. With dry it
// only reports what would change.
func (o *Office) SetClient(name string, args []string, dry bool) (*keys.Terms, []string, error) {
	c, err := o.known(name)
	if err != nil {
		return nil, nil, err
	}
	text, changed, err := keys.SetTerms(o.termsPath(name), name, c.text, args)
	if err != nil {
		return nil, nil, err
	}
	t, err := keys.ParseTerms(o.termsPath(name), name, text)
	if err != nil {
		return nil, nil, err
	}
	next := *o
	next.Clients = []*Client{{Terms: t}}
	if err := next.checkClients(); err != nil {
		return nil, nil, err
	}
	if dry || len(changed) == 0 {
		return t, changed, nil
	}
	return t, changed, write(o.termsPath(name), text, place.OnlyOver)
}

// ErrRevoked means that a client is revoked: it gets no new key.
var ErrRevoked = errors.New("is revoked")

// RevokeClient marks a client as revoked: no bundle has it any more. It returns ErrRevoked if it was before.
func (o *Office) RevokeClient(name string, now time.Time) error {
	c, err := o.known(name)
	if err != nil {
		return err
	}
	if !c.Revoked.IsZero() {
		return fmt.Errorf("client %s %w since %s", name, ErrRevoked, c.Revoked.Local().Format(time.DateTime))
	}
	text, _, err := keys.SetTerms(o.termsPath(name), name, c.text, []string{"revoked=" + second(now).Format(time.RFC3339)})
	if err != nil {
		return err
	}
	return write(o.termsPath(name), text, place.OnlyOver)
}

// A Rotation says what becomes of a client's key.
type Rotation struct {
	Until time.Time // when the previous key ends
	Force bool      // end a key that is still valid after an earlier rotation
	Lost  bool      // replace the newest key, and keep the previous one
}

// ErrTwoKeys means that the previous key of a client is still valid.
var ErrTwoKeys = errors.New("already has a new key")

// ErrNoLost means that a client has no newer key that could be replaced.
var ErrNoLost = errors.New("has no lost token to replace: no previous key is valid")

// RotateClient gives a client a new key. give hands out its token: if it fails, the key is as before.
func (o *Office) RotateClient(v *Vault, name string, r Rotation, now time.Time,
	give func(*keys.Profile) error) (*keys.FleetKey, error) {
	c, err := o.known(name)
	if err != nil {
		return nil, err
	}
	if !c.Revoked.IsZero() {
		return nil, fmt.Errorf("client %s %w since %s, and gets no new key", name, ErrRevoked,
			c.Revoked.Local().Format(time.DateTime))
	}
	k, err := o.key(v, c)
	if err != nil {
		return nil, err
	}
	alive := !k.Previous.IsZero() && now.Before(k.Until)
	switch {
	case r.Lost && !alive:
		return nil, fmt.Errorf("client %s %w", name, ErrNoLost)
	case alive && !r.Force && !r.Lost:
		return nil, fmt.Errorf("client %s %w: the previous one is valid until %s", name, ErrTwoKeys,
			k.Until.Local().Format(time.DateTime))
	case r.Lost:
		k.Key = keys.NewKey()
	default:
		k.Rotate(r.Until)
	}
	if err := o.writeKey(v, name, k.FleetKey, place.OnlyOver); err != nil {
		return nil, err
	}
	if err := give(o.Profile(v, c.Terms, k.FleetKey)); err != nil {
		return nil, errors.Join(err, write(o.keyPath(name), c.sealed, place.OnlyOver))
	}
	return k.FleetKey, nil
}
