package fleet

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/fleet/share"
)

// An Office is whom a gateway believes.
type Office struct {
	Fleet keys.FleetID
	Key   ed25519.PublicKey // 32 bytes
}

// ParseOfficeKey parses the base64 of an office's public key, as office.toml and server.toml have it.
func ParseOfficeKey(text string) (ed25519.PublicKey, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != ed25519.PublicKeySize || base64.StdEncoding.EncodeToString(b) != text {
		return nil, errors.New("an office's key is 32 bytes in base64, 44 characters")
	}
	return b, nil
}

// Verify reports why a bundle is not one of this office for this gateway: ErrSignature, ErrFleet or ErrRecipient.
func (o Office) Verify(b *Bundle, gateway string) error {
	switch {
	case len(o.Key) != ed25519.PublicKeySize || !ed25519.Verify(o.Key, b.signed(), b.signature):
		return ErrSignature
	case b.Fleet != o.Fleet:
		return ErrFleet
	case b.Gateway != gateway:
		return ErrRecipient
	}
	return nil
}

// Contents are what a bundle tells its gateway.
type Contents struct {
	Site    string    // with the fleet's id it makes the server id: see keys.FleetID.Server
	Share   share.Key // of gateways that share an address; none for a gateway alone
	Gates   keys.Gates
	Clients []*keys.Client // sorted by name, each with Fleet set
	Taken   TakenKey       // to sign that the bundle was taken over: Open sets it, and Seal ignores it
}

// A Seal is what an office seals bundles with.
type Seal struct {
	Fleet keys.FleetID
	Key   ed25519.PrivateKey
}

// Seal makes the bundle of one gateway. The contents' keys must be those at the gateway's server id.
func (s Seal) Seal(gateway string, to *age.HybridRecipient, serial int64, issued time.Time,
	c *Contents) (*Bundle, error) {
	var sealed bytes.Buffer
	var taken TakenKey
	w, err := age.Encrypt(&sealed, notingRecipient{to, &taken})
	if err != nil {
		return nil, fmt.Errorf("sealing the bundle of %s: %w", gateway, err)
	}
	w.Write(c.text()) // into memory: only Close can fail
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("sealing the bundle of %s: %w", gateway, err)
	}
	b := &Bundle{sealed: sealed.Bytes(), Head: Head{Fleet: s.Fleet, Gateway: gateway, Serial: serial,
		Issued: issued.UTC().Truncate(time.Second), Size: int64(sealed.Len()), Sum: sha256.Sum256(sealed.Bytes())}}
	b.signature = ed25519.Sign(s.Key, b.signed())
	b.taken = taken.public()
	if _, err := Parse(b.Bytes()); err != nil || sealed.Len() > MaxBundle {
		return nil, fmt.Errorf("the bundle of %s cannot be made: its name, serial or size is out of bounds", gateway)
	}
	return b, nil
}

// Open opens a bundle with a gateway's key. Verify comes first. Its error wraps ErrSealed or ErrContents and quotes no
// secret.
func Open(b *Bundle, gateway *age.HybridIdentity) (*Contents, error) {
	var taken TakenKey
	r, err := age.Decrypt(bytes.NewReader(b.sealed), notingIdentity{gateway, &taken})
	if err != nil {
		return nil, ErrSealed
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, ErrSealed
	}
	c, err := parseContents(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrContents, err)
	}
	c.Taken = taken
	return c, nil
}

// The entries before the clients.
const (
	siteEntry  = "site"
	gateEntry  = "gate.key"
	shareEntry = "share.key" // only for gateways that share an address
)

const clientsDir = "clients/"

// text returns the contents as they are sealed.
func (c *Contents) text() []byte {
	var b bytes.Buffer
	entry := func(name string, text []byte) {
		fmt.Fprintf(&b, "%s %d\n", name, len(text))
		b.Write(text)
	}
	entry(siteEntry, []byte(c.Site))
	entry(gateEntry, c.Gates.Text())
	if !c.Share.IsZero() {
		entry(shareEntry, []byte(c.Share.Reveal()+"\n"))
	}
	clients := slices.SortedFunc(slices.Values(c.Clients), func(a, b *keys.Client) int {
		return strings.Compare(a.Name, b.Name)
	})
	for _, client := range clients {
		entry(clientsDir+client.Name+keys.Suffix, client.Text())
	}
	return b.Bytes()
}

// parseContents parses what text returns, and nothing else.
func parseContents(text []byte) (*Contents, error) {
	e := entries{rest: text}
	site, gates := e.named(siteEntry), e.named(gateEntry)
	if e.bad {
		return nil, errors.New("it does not begin with site and gate.key")
	}
	c := &Contents{Site: string(site)}
	if err := service.ValidName(c.Site); err != nil {
		return nil, fmt.Errorf("its site: %w", err)
	}
	var err error
	if c.Gates, err = keys.ParseGates(gateEntry, gates); err != nil {
		return nil, err
	}
	if e.begins(shareEntry) {
		text, ends := strings.CutSuffix(string(e.named(shareEntry)), "\n")
		if c.Share, err = share.ParseKey(text); err != nil || !ends {
			return nil, errors.New("its share.key is not a line with a key")
		}
	}
	parse := keys.ClientParser()
	last := ""
	for len(e.rest) > 0 {
		file, text := e.next()
		name, ok := strings.CutPrefix(file, clientsDir)
		name, ends := strings.CutSuffix(name, keys.Suffix)
		if !ok || !ends || name <= last {
			return nil, errors.New("an entry is cut off, out of order, or unknown to this version")
		}
		client, err := parse(name, text)
		switch {
		case err != nil:
			return nil, err
		case client.Recovery != 0: // each gateway would count its uses for itself
			return nil, fmt.Errorf("client %s has a recovery key", name)
		}
		client.Fleet, last = true, name
		c.Clients = append(c.Clients, client)
	}
	return c, nil
}

// entries consumes contents from the front.
type entries struct {
	rest []byte
	bad  bool
}

func (e *entries) next() (name string, text []byte) {
	head, rest, ok := bytes.Cut(e.rest, []byte("\n"))
	name, length, _ := strings.Cut(string(head), " ")
	n, err := strconv.ParseUint(length, 10, 32)
	if !ok || err != nil || n > uint64(len(rest)) || strconv.FormatUint(n, 10) != length {
		e.bad, e.rest = true, nil
		return "", nil
	}
	e.rest = rest[n:]
	return name, rest[:n]
}

// begins reports whether the next entry has this name.
func (e *entries) begins(name string) bool { return bytes.HasPrefix(e.rest, []byte(name+" ")) }

func (e *entries) named(want string) []byte {
	name, text := e.next()
	e.bad = e.bad || name != want
	return text
}
