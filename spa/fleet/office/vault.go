package office

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/fleet"
)

// A Vault has the secrets of an office: what opening vault.age yields. It prints as office.Vault(secret).
type Vault struct {
	signing  *ed25519.PrivateKey // behind a pointer, as the others are: see keys.Key
	gate     keys.GateKey
	share    *[32]byte             // the keys of sites derive from it; no other replaces it
	own      *age.HybridIdentity   // clients' keys are sealed to it
	earlier  []*age.HybridIdentity // to which they were sealed before an administrator left
	admins   map[string]string     // recipients by name: whom the vault is sealed to
	replaced []string              // earlier signing keys, in public
	me       string                // the administrator that opened it
}

// Format prints office.Vault(secret) for every verb.
func (v *Vault) Format(f fmt.State, _ rune) { io.WriteString(f, "office.Vault(secret)") }

// Admin returns the name of the administrator that opened the vault.
func (v *Vault) Admin() string { return v.me }

type rawVault struct {
	Version  int64             `toml:"version"`
	Fleet    string            `toml:"fleet"`
	Signing  string            `toml:"signing"`
	Replaced []string          `toml:"replaced"`
	Gate     string            `toml:"gate"`
	Share    string            `toml:"share"`
	Identity string            `toml:"identity"`
	Earlier  []string          `toml:"earlier"`
	Admins   map[string]string `toml:"admins"`
}

// newVault makes the secrets of a new office with one administrator.
func newVault(admin string, recipient *age.HybridRecipient) (*Vault, error) {
	_, signing, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	own, err := age.GenerateHybridIdentity()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return &Vault{signing: &signing, gate: keys.NewGateKey(), share: newShare(), own: own, me: admin,
		admins: map[string]string{admin: recipient.String()}}, nil
}

// newShare makes the secret of all sites.
func newShare() *[32]byte {
	var secret [32]byte
	rand.Read(secret[:])
	return &secret
}

// parseShare parses the secret of all sites. A vault that was written before there were sites has none: it is derived
// from the key that signs bundles, and stays when another replaces that key.
func parseShare(text string, signing []byte) (*[32]byte, error) {
	if text == "" {
		b, err := hkdf.Key(sha256.New, signing, nil, "sallyport 1 sites", 32)
		return (*[32]byte)(b), err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != 32 {
		return nil, errors.New("the secret of sites has 32 bytes")
	}
	return (*[32]byte)(b), nil
}

func (v *Vault) public() ed25519.PublicKey { return v.signing.Public().(ed25519.PublicKey) }

// text returns the vault, which must be sealed.
func (v *Vault) text(id keys.FleetID) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "version = %d\nfleet = %q\nsigning = %q\nreplaced = [%s]\ngate = %q\nshare = %q\nidentity = %q\n",
		strict.Version, id,
		base64.StdEncoding.EncodeToString(v.signing.Seed()), quotedList(v.replaced), v.gate.Reveal(),
		base64.StdEncoding.EncodeToString(v.share[:]), v.own)
	earlier := make([]string, len(v.earlier))
	for i, id := range v.earlier {
		earlier[i] = id.String()
	}
	fmt.Fprintf(&b, "earlier = [%s]\n[admins]\n", quotedList(earlier))
	for _, name := range slices.Sorted(maps.Keys(v.admins)) {
		fmt.Fprintf(&b, "%s = %q\n", name, v.admins[name])
	}
	return []byte(b.String())
}

// write seals the vault to its administrators.
func (v *Vault) write(o *Office, how place.Placing) error {
	var to []*age.HybridRecipient
	for _, name := range slices.Sorted(maps.Keys(v.admins)) {
		r, err := fleet.ParseRecipient(v.admins[name])
		if err != nil {
			return fmt.Errorf("administrator %s: %w", name, err)
		}
		to = append(to, r)
	}
	sealed, err := seal(v.text(o.Fleet), to...)
	if err != nil {
		return err
	}
	return write(o.path(vaultFile), sealed, how)
}

// ErrNotAdmin means that the vault is not sealed to the administrator who tries to open it.
var ErrNotAdmin = errors.New("the office is not sealed to this identity")

// Unlock opens the vault.
func (o *Office) Unlock(me *age.HybridIdentity) (*Vault, error) {
	path := o.path(vaultFile)
	sealed, err := read(path, maxFile)
	if err != nil {
		return nil, err
	}
	text, err := unseal(path, sealed, me)
	if errors.Is(err, errNotFor) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotAdmin)
	}
	if err != nil {
		return nil, err
	}
	v, id, err := parseVault(path, text)
	if err != nil {
		return nil, err
	}
	for name, recipient := range v.admins {
		if recipient == me.Recipient().String() {
			v.me = name
		}
	}
	public := base64.StdEncoding.EncodeToString(o.Key)
	if id != o.Fleet || !v.public().Equal(o.Key) && !slices.Contains(v.replaced, public) {
		return nil, problem(path, "not of the same office as %s", officeFile)
	}
	return v, nil
}

// parseVault parses what text returns. Its errors quote no secret.
func parseVault(path string, text []byte) (*Vault, keys.FleetID, error) {
	var raw rawVault
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, keys.FleetID{}, err
	}
	id, idErr := keys.ParseFleetID(raw.Fleet)
	gate, gateErr := keys.ParseGateKey(raw.Gate)
	seed, seedErr := base64.StdEncoding.DecodeString(raw.Signing)
	own, ownErr := age.ParseHybridIdentity(raw.Identity)
	secret, secretErr := parseShare(raw.Share, seed)
	if errors.Join(idErr, gateErr, seedErr, ownErr, secretErr) != nil || len(seed) != ed25519.SeedSize {
		return nil, keys.FleetID{}, doc.Problem("version", "the vault is whole, but lacks a key")
	}
	for name := range raw.Admins {
		if err := service.ValidName(name); err != nil {
			return nil, keys.FleetID{}, doc.Problem("admins", "has a name that no administrator has: %s", err)
		}
	}
	signing := ed25519.NewKeyFromSeed(seed)
	v := &Vault{signing: &signing, gate: gate, share: secret, own: own, admins: raw.Admins,
		replaced: raw.Replaced}
	for _, text := range raw.Earlier {
		earlier, err := age.ParseHybridIdentity(text)
		if err != nil {
			return nil, keys.FleetID{}, doc.Problem("earlier", "the vault is whole, but an earlier key is not one")
		}
		v.earlier = append(v.earlier, earlier)
	}
	return v, id, nil
}

// identities returns the identities that open the keys of clients, the current one first.
func (v *Vault) identities() []age.Identity {
	list := []age.Identity{v.own}
	for _, id := range v.earlier {
		list = append(list, id)
	}
	return list
}
