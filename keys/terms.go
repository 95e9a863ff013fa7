package keys

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// Terms are what the office of a fleet writes about a client for everyone to read: everything but its keys.
type Terms struct {
	Client            // without ID, Key, Previous and Recovery
	Gateways []string // where it may knock; empty: at every gateway
}

type rawTerms struct {
	Version       int64      `toml:"version"`
	Allow         []string   `toml:"allow"`
	Gateways      []string   `toml:"gateways"`
	From          []string   `toml:"from"`
	Deny          []string   `toml:"deny"`
	Widest4       *int64     `toml:"widest4"`
	Widest6       *int64     `toml:"widest6"`
	Delegate      []string   `toml:"delegate"`
	Expires       *time.Time `toml:"expires"`
	MaxFor        *string    `toml:"max_for"`
	RequireSource bool       `toml:"require_source"`
	When          []string   `toml:"when"`
	Revoked       *time.Time `toml:"revoked"`
}

// TermsKeys returns the keys of a client's terms that have a value.
func TermsKeys() []string { return strict.Keys(new(rawTerms), "") }

// ParseTerms parses a client's terms. Its error names the file at path.
func ParseTerms(path, name string, text []byte) (*Terms, error) {
	return parseTerms(strict.Schema{}, path, name, text)
}

// TermsParser returns a function that is ParseTerms for many files, one after the other.
func TermsParser() func(path, name string, text []byte) (*Terms, error) {
	s := strict.Schema{}
	return func(path, name string, text []byte) (*Terms, error) { return parseTerms(s, path, name, text) }
}

func parseTerms(s strict.Schema, path, name string, text []byte) (*Terms, error) {
	var raw rawTerms
	doc, err := s.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	return raw.terms(doc, name)
}

func (raw *rawTerms) terms(d *strict.Document, name string) (*Terms, error) {
	r := reader{doc: d}
	if raw.Allow == nil && !r.needs("allow") {
		return nil, errors.Join(r.problems...)
	}
	t := &Terms{Client: Client{Name: name, Allow: raw.Allow, RequireSource: raw.RequireSource}, Gateways: raw.Gateways}
	if raw.Gateways != nil && len(raw.Gateways) == 0 {
		r.must("gateways", errors.New("is empty, so it could knock nowhere: leave the line out to allow all gateways"))
	}
	for i, gateway := range raw.Gateways {
		if err := service.ValidName(gateway); err != nil {
			r.must("gateways", fmt.Errorf("entry %d: %w", i+1, err))
		}
		if slices.Contains(raw.Gateways[:i], gateway) {
			r.must("gateways", fmt.Errorf("entry %d is listed twice", i+1))
		}
	}
	r.terms(&rawClient{Allow: raw.Allow, From: raw.From, Deny: raw.Deny, Widest4: raw.Widest4, Widest6: raw.Widest6,
		Delegate: raw.Delegate, Expires: raw.Expires, MaxFor: raw.MaxFor, When: raw.When, Revoked: raw.Revoked}, &t.Client)
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return t, nil
}

// Text returns the terms as a file.
func (t *Terms) Text() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "version = %d\nallow = %s\n", strict.Version, list(t.Allow))
	if len(t.Gateways) > 0 {
		fmt.Fprintf(&b, "gateways = %s\n", list(t.Gateways))
	}
	t.writeTerms(&b)
	if !t.Revoked.IsZero() {
		fmt.Fprintf(&b, "revoked = %s\n", timeText(t.Revoked))
	}
	return []byte(b.String())
}

// SetTerms returns the terms in text with settings changed, given as [strict.ParseSettings] reads them, and the keys
// that changed: all or none. What people wrote into the file stays.
func SetTerms(path, name string, text []byte, args []string) (after []byte, changed []string, err error) {
	settings, err := strict.ParseSettings(new(rawTerms), args)
	if err != nil {
		return nil, nil, err
	}
	doc, err := strict.Decode(path, text, new(rawTerms))
	if err != nil {
		return nil, nil, err
	}
	if after, changed, err = doc.Set(settings); err != nil {
		return nil, nil, err
	}
	_, err = ParseTerms(path, name, after)
	return after, changed, err
}

// A FleetKey is a client's key for a fleet, from which those for its gateways are derived. Only the client and the
// office have it.
type FleetKey struct {
	Client   string
	Key      Key
	Previous Key       // the key before the last rotation; or the zero Key
	Until    time.Time // from then on the previous key opens nothing
}

type rawFleetKey struct {
	Version  int64           `toml:"version"`
	Client   string          `toml:"client"`
	Key      string          `toml:"key"`
	Previous *rawFleetBefore `toml:"previous"`
}

type rawFleetBefore struct {
	Key   string    `toml:"key"`
	Until time.Time `toml:"until"`
}

// Rotate gives the client a new key. The current one becomes the previous one, which is valid until then.
func (k *FleetKey) Rotate(until time.Time) {
	k.Previous, k.Until, k.Key = k.Key, until, NewKey()
}

// Text returns the key as a file, which must be sealed.
func (k *FleetKey) Text() []byte {
	text := fmt.Appendf(nil, "version = %d\nclient = %q\nkey = \"%s\"\n", strict.Version, k.Client, k.Key.Reveal())
	if !k.Previous.IsZero() {
		text = fmt.Appendf(text, "previous = { key = \"%s\", until = %s }\n", k.Previous.Reveal(), timeText(k.Until))
	}
	return text
}

// ParseFleetKey parses what Text returns. Its errors name the file at path and quote no secret.
func ParseFleetKey(path string, text []byte) (*FleetKey, error) {
	var raw rawFleetKey
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	r := reader{doc: doc}
	if !r.needs("client", "key") || raw.Previous != nil && !r.needs("previous.key", "previous.until") {
		return nil, errors.Join(r.problems...)
	}
	k := &FleetKey{Client: raw.Client, Key: r.key("key", raw.Key)}
	r.must("client", service.ValidName(raw.Client))
	if raw.Previous != nil {
		k.Previous, k.Until = r.key("previous.key", raw.Previous.Key), r.time("previous.until", &raw.Previous.Until)
		if k.Previous.Equal(k.Key) {
			r.must("previous.key", errors.New("is the current key: a previous key is another"))
		}
	}
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return k, nil
}

func (r *reader) key(key, text string) Key {
	k, err := parseKey(text)
	r.must(key, err)
	return k
}

// At returns the client as one of the fleet's servers knows it. k is the client's key for the fleet.
func (t *Terms) At(server ServerID, k *FleetKey) *Client {
	c := t.Client
	c.ID, c.Key, c.Fleet = k.Key.IDAt(server), k.Key.At(server), true
	if !k.Previous.IsZero() {
		c.Previous = &Previous{ID: k.Previous.IDAt(server), Key: k.Previous.At(server), Until: k.Until}
	}
	return &c
}
