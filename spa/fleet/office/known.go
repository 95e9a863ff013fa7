package office

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/fleet"
)

// Known is what an administrator remembers outside the offices: the key that signs the bundles of each. Anyone who can
// write an office's files can put another vault there, since the recipients that it is sealed to are public; but its
// key is another one.
type Known struct {
	path string
	keys map[keys.FleetID][]string // in base64; two while one replaces the other
}

// Errors of Known.Check.
var (
	// ErrFirst means that the administrator has used no office yet.
	ErrFirst = errors.New("first use of an office with this identity")
	// ErrOtherOffice means that the administrator has used other offices, but not this one: who can exchange the vault
	// can exchange the fleet's id too.
	ErrOtherOffice = errors.New("this identity has used another office, but not this one")
	// ErrOtherKey means that bundles are signed with another key than the administrator knows.
	ErrOtherKey = errors.New("the office has another key than when this identity last used it")
)

const knownHead = "# The keys of the offices that the identity beside this file has used: spa-fleet(8).\n"

// ReadKnown reads what is remembered beside an identity: in the file IDENTITY.known, a line "FLEET KEY" for each key.
func ReadKnown(identity string) (*Known, error) {
	k := &Known{path: identity + ".known", keys: make(map[keys.FleetID][]string)}
	text, err := place.FolderOf(k.path).Read(filepath.Base(k.path), maxIdentity, place.Own)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, key, _ := strings.Cut(line, " ")
		of, idErr := keys.ParseFleetID(id)
		_, keyErr := fleet.ParseOfficeKey(key)
		if err := errors.Join(idErr, keyErr); err != nil {
			return nil, &place.FileError{File: k.path, Line: n, Text: "not a fleet's id and its office's key"}
		}
		k.keys[of] = append(k.keys[of], key)
	}
	return k, nil
}

// Check returns ErrFirst, ErrOtherOffice or ErrOtherKey unless the office's vault has a key that is remembered.
func (k *Known) Check(o *Office, v *Vault) error {
	known := k.keys[o.Fleet]
	switch {
	case len(k.keys) == 0:
		return ErrFirst
	case len(known) == 0:
		return fmt.Errorf("%w: the key is %s", ErrOtherOffice, base64Key(v.public()))
	case slices.Contains(known, base64Key(v.public())):
		return nil
	}
	return fmt.Errorf("%w: %s, and not %s", ErrOtherKey, base64Key(v.public()), strings.Join(known, " or "))
}

// Trust remembers a key of an office and forgets its others.
func (k *Known) Trust(of keys.FleetID, key ed25519.PublicKey) error {
	return k.write(of, []string{base64Key(key)})
}

// Expect remembers a key of an office beside its others, before it comes into force.
func (k *Known) Expect(of keys.FleetID, key ed25519.PublicKey) error {
	return k.write(of, append(slices.Clone(k.keys[of]), base64Key(key)))
}

func (k *Known) write(of keys.FleetID, known []string) error {
	k.keys[of] = known
	var lines []string
	for id, list := range k.keys {
		for _, key := range list {
			lines = append(lines, id.String()+" "+key+"\n")
		}
	}
	slices.Sort(lines)
	return place.Write(k.path, []byte(knownHead+strings.Join(lines, "")), place.EitherWay, place.ForOwner)
}
