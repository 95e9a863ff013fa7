package setup

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/sandbox"
)

// Errors of a bundle that is good by itself, but not after the one in force.
var (
	// ErrOlder means that a bundle's serial is lower: an old bundle was offered, with clients that may be revoked.
	ErrOlder = errors.New("an older bundle than the one in force")
	// ErrTwin means that another bundle has the serial of the one in force: two offices have the same key.
	ErrTwin = errors.New("has the serial of the one in force, and other contents: was the office's directory copied?")
)

// ErrFleetKey means that no bundle can be opened, because of the gateway's key for its fleet.
var ErrFleetKey = errors.New("no bundle of the fleet can be opened")

// Reasons are the words for why a bundle is refused, for Reason.
var Reasons = []string{"unreadable", "format", "signature", "fleet", "gateway", "older", "twin", "key", "sealed",
	"contents"}

// Reason returns the word for why a bundle is refused.
func Reason(err error) string {
	for reason, is := range map[string]error{"format": fleet.ErrFormat, "signature": fleet.ErrSignature,
		"fleet": fleet.ErrFleet, "gateway": fleet.ErrRecipient, "older": ErrOlder, "twin": ErrTwin, "key": ErrFleetKey,
		"sealed": fleet.ErrSealed, "contents": fleet.ErrContents} {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "unreadable"
}

// A Bundle is one that this gateway can use.
type Bundle struct {
	fleet.Head
	Text     []byte // of the whole file
	Contents *fleet.Contents
	Whole    [sha256.Size]byte // the sum of Text
}

// TakeBundle returns the bundle that a file has, if it may follow the one in force, which may be nil. The cheap checks
// come first, and the key, which readKey returns, last. Its error has one of the Reasons.
func TakeBundle(c *config.Config, text []byte, inForce *Bundle,
	readKey func() (*age.HybridIdentity, error)) (*Bundle, error) {
	parsed, err := verified(c, text, c.FleetName())
	if err != nil {
		return nil, err
	}
	b := &Bundle{Head: parsed.Head, Text: text, Whole: sha256.Sum256(text)}
	switch {
	case inForce == nil:
	case b.Serial < inForce.Serial:
		return nil, fmt.Errorf("%w: its serial is %d, and that of the one in force %d", ErrOlder, b.Serial, inForce.Serial)
	case b.Serial == inForce.Serial && b.Whole != inForce.Whole:
		return nil, fmt.Errorf("%w (serial %d)", ErrTwin, b.Serial)
	}
	key, err := readKey()
	if err != nil {
		return nil, err
	}
	if b.Contents, err = fleet.Open(parsed, key); err != nil {
		return nil, err
	}
	if _, err := new(keys.Registry).FleetChanges(b.Contents.Clients); err != nil {
		return nil, fmt.Errorf("%w: %w", fleet.ErrContents, err)
	}
	return b, nil
}

// verified returns the bundle that a file has, if this gateway's office has signed it for a gateway of this name;
// empty: of any name.
func verified(c *config.Config, text []byte, gateway string) (*fleet.Bundle, error) {
	office := fleet.Office{Fleet: c.Fleet.ID}
	var err error
	if office.Key, err = fleet.ParseOfficeKey(c.Fleet.Office); err != nil {
		return nil, err
	}
	start, err := fleet.ParseStart(text)
	if err != nil {
		return nil, err
	}
	switch err := office.Verify(start, cmp.Or(gateway, start.Gateway)); {
	case errors.Is(err, fleet.ErrRecipient):
		return nil, fmt.Errorf("%w: for %s, and this one is %s", err, start.Gateway, gateway)
	case errors.Is(err, fleet.ErrFleet):
		return nil, fmt.Errorf("%w: %s", err, start.Fleet)
	case err != nil:
		return nil, err
	}
	return fleet.Parse(text)
}

// Bundles are what a gateway finds when it starts.
type Bundles struct {
	Key     error   // why no bundle can be opened
	Kept    *Bundle // the last one that was in force, from the state directory; nil: none, or it cannot be opened
	Last    *Bundle // the same, even if it cannot be opened, or was for another name: nothing older may follow it
	Slot    int     // which of the two files has it
	Offered *Bundle // nil: Refused
	Refused error   // fs.ErrNotExist: none is offered

	// Rekeyed are clients that had only other keys until some time, or until now: a grant from before may be of a key
	// that was stolen.
	Rekeyed map[string]time.Time

	before *Bundle   // the one before Kept; nil: none
	at     time.Time // when Kept was taken over
}

// IsKept reports whether a bundle is the one that is kept.
func (b *Bundles) IsKept(other *Bundle) bool { return b.Kept != nil && b.Kept.Whole == other.Whole }

// Best returns the bundle to begin with; nil if there is none.
func (b *Bundles) Best() *Bundle {
	if b.Offered != nil {
		return b.Offered
	}
	return b.Kept
}

// JoinFleet adds the clients of the fleet to those that have files, as a start does. It returns nil for a gateway that
// is in no fleet. Files that only root can read are accepted and logged; without a log they are refused, as the server
// refuses them later.
func JoinFleet(c *config.Config, clients *keys.Registry, log *slog.Logger, now time.Time) *Bundles {
	if !c.Fleet.On() {
		return nil
	}
	clients.FleetAlone(!c.Fleet.LocalClients)
	found := loadBundles(c, func(read func() error) error {
		if log == nil {
			return sandbox.As(SystemUser, read)
		}
		return AsServer(log, read)
	})
	found.apply(clients, now)
	return found
}

// apply puts the clients of the best bundle into force, after those of the earlier ones: so it finds out which of them
// have lost their keys since grants were given.
func (b *Bundles) apply(clients *keys.Registry, now time.Time) {
	b.Rekeyed = make(map[string]time.Time)
	follow := func(next *Bundle, counts bool, at time.Time) {
		if next == nil {
			return
		}
		changes, _ := clients.FleetChanges(next.Contents.Clients) // TakeBundle has tried that
		for _, c := range clients.ApplyFleet(changes) {
			if counts && c.Before != nil && c.After != nil && keys.Rekeyed(c.Before, c.After, now) {
				b.Rekeyed[c.Before.Name] = at
			}
		}
	}
	if b.Kept != nil { // else it must not stay in force
		follow(b.before, false, time.Time{})
	}
	at := b.at
	if now.Before(at) {
		at = now
	}
	follow(b.Kept, b.before != nil, at)
	follow(b.Offered, true, now)
}

func loadBundles(c *config.Config, asServer func(read func() error) error) *Bundles {
	var b Bundles
	var key *age.HybridIdentity
	b.Key = inFolder(c.Dir, func(d place.Folder) error {
		return asServer(func() (err error) { key, err = ReadFleetKey(d); return err })
	})
	readKey := func() (*age.HybridIdentity, error) { return key, b.Key }
	for slot := range 2 {
		var text []byte
		var at time.Time
		if err := sandbox.OrAs(SystemUser, func() (err error) {
			text, at, err = readKept(c.State, slot)
			return err
		}); err != nil {
			continue // missing, or torn by a crash: then the other one is whole
		}
		known, err := verified(c, text, "")
		if err != nil {
			continue
		}
		kept, _ := TakeBundle(c, text, nil, readKey)
		if b.Last != nil && known.Serial < b.Last.Serial {
			b.before = kept
			continue
		}
		b.Last, b.Slot, b.before = &Bundle{Head: known.Head, Whole: sha256.Sum256(text)}, slot, b.Kept
		b.Kept, b.at = kept, at
	}
	var text []byte
	b.Refused = inFolder(filepath.Dir(c.Fleet.Bundle), func(d place.Folder) error {
		return asServer(func() (err error) { text, err = ReadOffered(d, filepath.Base(c.Fleet.Bundle)); return err })
	})
	if b.Refused != nil {
		return &b
	}
	b.Offered, b.Refused = TakeBundle(c, text, b.Last, readKey)
	return &b
}

// inFolder calls read with a directory that is open: the server's user may not be able to reach it by its path.
func inFolder(dir string, read func(place.Folder) error) error {
	root, err := OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return read(place.Folder{Path: dir, Root: root})
}

// ReadOffered reads a file that may be a bundle. The program that puts it there is not trusted.
func ReadOffered(d place.Folder, file string) ([]byte, error) {
	text, err := d.Read(file, fleet.MaxFile, nil)
	return text, Legible(filepath.Join(d.Path, file), err)
}

const maxFleetKey = 16 << 10

// ReadFleetKey reads the gateway's key for its fleet from the directory of server.toml. Its error is an ErrFleetKey and
// quotes no secret.
func ReadFleetKey(d place.Folder) (*age.HybridIdentity, error) {
	text, err := d.Read(config.FleetKeyFile, maxFleetKey, place.Private)
	path := filepath.Join(d.Path, config.FleetKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: spa-server init --fleet makes it", err)
	}
	if err = Legible(path, err); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFleetKey, err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	if len(lines) == 1 {
		if key, err := age.ParseHybridIdentity(lines[0]); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrFleetKey, &place.FileError{File: path, Text: "not the key that spa-server init " +
		"--fleet has made: put back a copy, or remove it and make another, which the office must learn"})
}

// InitFleet makes the gateway's key for a fleet unless there is one, and returns what the office must learn.
func InitFleet(c *config.Config) (r fleet.Request, made bool, err error) {
	d := place.Folder{Path: c.Dir}
	path := filepath.Join(c.Dir, config.FleetKeyFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := writeFleetKey(path); err != nil {
			return r, false, err
		}
		made = true
	}
	key, err := ReadFleetKey(d)
	if err != nil {
		return r, made, err
	}
	r = fleet.Request{Name: c.Name, Address: c.Address, Recipient: key.Recipient()}
	if c.Fleet.Gateway != "" {
		r.Name = c.Fleet.Gateway
	}
	for _, port := range c.KnockPorts {
		r.KnockPorts = append(r.KnockPorts, port.Port)
	}
	return r, made, nil
}

func writeFleetKey(path string) error {
	key, err := age.GenerateHybridIdentity()
	if err != nil {
		return err
	}
	text := "# This gateway's key for its fleet. It opens the gateway's bundles, and never leaves this host.\n" +
		key.String() + "\n"
	return place.Write(path, []byte(text), place.OnlyNew, place.ForService)
}
