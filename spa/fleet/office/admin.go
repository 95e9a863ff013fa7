package office

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/strict"
	"sallyport/spa/fleet"
)

// An Admin is what admins/NAME.toml says. The vault has its own list, which decides: a file alone lets nobody in.
type Admin struct {
	Name      string
	Recipient *age.HybridRecipient
}

type rawAdmin struct {
	Version   int64  `toml:"version"`
	Recipient string `toml:"recipient"`
}

func (o *Office) readAdmins() error {
	list, err := names(o.path(adminsDir), keys.Suffix)
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range list {
		a, err := readAdmin(o.adminPath(name), name)
		o.Admins, problems = append(o.Admins, a), append(problems, err)
	}
	return errors.Join(problems...)
}

func readAdmin(path, name string) (*Admin, error) {
	text, err := read(path, maxFile)
	if err != nil {
		return nil, err
	}
	r, err := parseAdmin(path, text)
	if err != nil {
		return nil, err
	}
	return &Admin{name, r}, nil
}

func (a *Admin) write(o *Office) error {
	text := fmt.Appendf(nil, "version = %d\nrecipient = %q\n", strict.Version, a.Recipient)
	return write(o.adminPath(a.Name), text, place.EitherWay)
}

// ParseAdmin returns the recipient in a text: a recipient itself, or the file of an administrator of another office.
func ParseAdmin(path string, text []byte) (*age.HybridRecipient, error) {
	if a, err := fleet.ParseRecipient(string(trimmed(text))); err == nil {
		return a, nil
	}
	return parseAdmin(path, text)
}

func parseAdmin(path string, text []byte) (*age.HybridRecipient, error) {
	var raw rawAdmin
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	r, err := fleet.ParseRecipient(raw.Recipient)
	if err != nil {
		return nil, doc.Problem("recipient", "%s", err)
	}
	return r, nil
}

// Create makes an office with one administrator in a directory, which may exist if it is no office yet.
func Create(dir string, s Settings, admin string, recipient *age.HybridRecipient) (*Office, error) {
	unlock, err := place.LockAlone(dir, patience)
	if err != nil {
		return nil, err
	}
	defer unlock()
	o := &Office{Dir: dir, Settings: s}
	v, err := newVault(admin, recipient)
	if err != nil {
		return nil, err
	}
	o.Fleet, o.Key = keys.NewFleetID(), v.public()
	if _, err := parseSettings(o.path(officeFile), o.text()); err != nil {
		return nil, err
	}
	// office.toml comes last: before it, the directory is no office, and init can run again.
	if _, err := load(dir); !errors.Is(err, ErrNone) {
		if err == nil {
			err = fmt.Errorf("%s %w", o.path(officeFile), place.ErrExists)
		}
		return nil, err
	}
	if err := v.write(o, place.EitherWay); err != nil {
		return nil, err
	}
	if err := (&Admin{admin, recipient}).write(o); err != nil {
		return nil, err
	}
	return o, write(o.path(officeFile), o.text(), place.OnlyNew)
}

// Mismatches returns the administrators whose file and whose place in the vault differ, each with what is wrong: a
// command was killed, or git merged only one of them.
func (o *Office) Mismatches(v *Vault) map[string]string {
	found := make(map[string]string)
	for _, a := range o.Admins {
		switch v.admins[a.Name] {
		case a.Recipient.String():
		case "":
			found[a.Name] = "has a file, but the vault is not sealed to this administrator"
		default:
			found[a.Name] = "has another recipient in the file than in the vault"
		}
	}
	for name := range v.admins {
		if !slices.ContainsFunc(o.Admins, func(a *Admin) bool { return a.Name == name }) {
			found[name] = "can open the vault, and has no file"
		}
	}
	return found
}

// AddAdmin seals the vault to one more administrator. One that has another recipient must be removed first: that makes
// a new vault identity, which the old one cannot open.
func (o *Office) AddAdmin(v *Vault, name string, recipient *age.HybridRecipient) error {
	if have := v.admins[name]; have != "" && have != recipient.String() {
		return fmt.Errorf("administrator %s has another recipient: remove that first, with spa-fleet admin remove", name)
	}
	for other, have := range v.admins {
		if other != name && have == recipient.String() {
			return fmt.Errorf("administrator %s has the same recipient", other)
		}
	}
	next := *v
	next.admins = maps.Clone(v.admins)
	next.admins[name] = recipient.String()
	if err := next.write(o, place.OnlyOver); err != nil {
		return err
	}
	return (&Admin{name, recipient}).write(o)
}

// RemoveAdmin seals the office to everyone but one administrator: with a new identity of the vault, to which it seals
// the keys of all clients. Killed at any time it leaves an office that opens, and a second run ends what the first
// began. It returns the number of clients whose keys it sealed.
func (o *Office) RemoveAdmin(v *Vault, name string) (int, error) {
	listed := slices.ContainsFunc(o.Admins, func(a *Admin) bool { return a.Name == name })
	if v.admins[name] == "" && !listed {
		return 0, fmt.Errorf("administrator %s: %w", name, ErrUnknown)
	}
	if v.me == name {
		return 0, errors.New("an administrator cannot remove the identity that is in use: let another one do it")
	}
	ks, err := o.keys(context.Background(), v)
	if err != nil {
		return 0, err
	}
	next := *v
	if v.admins[name] != "" {
		if next.own, err = age.GenerateHybridIdentity(); err != nil {
			return 0, fmt.Errorf("making a key: %w", err)
		}
		next.earlier = append(slices.Clone(v.earlier), v.own)
		next.admins = maps.Clone(v.admins)
		delete(next.admins, name)
		if err := next.write(o, place.OnlyOver); err != nil {
			return 0, err
		}
	}
	n := 0
	for i, c := range o.Clients {
		if ks[i].current && next.own == v.own {
			continue // by an earlier run
		}
		if err := o.writeKey(&next, c.Name, ks[i].FleetKey, place.OnlyOver); err != nil {
			return n, err
		}
		n++
	}
	return n, remove(o.adminPath(name)) // last: while it is there, a second run goes on
}

// RotateKey makes a new key that signs bundles. Each gateway must be given it before it takes another bundle. Before
// anything is written it calls expect with the new key. Run again after it was killed, it ends what it began.
func (o *Office) RotateKey(v *Vault, expect func(ed25519.PublicKey) error) error {
	if v.public().Equal(o.Key) {
		fresh, err := newVault(v.me, v.own.Recipient())
		if err != nil {
			return err
		}
		next := *v
		next.signing, next.replaced = fresh.signing, append(slices.Clone(v.replaced), base64Key(o.Key))
		if err := expect(next.public()); err != nil {
			return err
		}
		if err := next.write(o, place.OnlyOver); err != nil {
			return err
		}
		v = &next
	}
	path := o.path(officeFile)
	text, err := read(path, maxFile)
	if err != nil {
		return err
	}
	doc, err := strict.Decode(path, text, new(rawOffice))
	if err != nil {
		return err
	}
	after, _, err := doc.Set([]strict.Setting{{Key: "key", Value: `"` + base64Key(v.public()) + `"`}})
	if err != nil {
		return err
	}
	o.Key = v.public()
	return write(path, after, place.OnlyOver)
}

// second returns a time without its fraction of a second, as files have it.
func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }
