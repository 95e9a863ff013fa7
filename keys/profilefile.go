package keys

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

// maxProfileFile is more than the longest profile has: that of a fleet with all its gateways and services.
const maxProfileFile = 512 << 10

type rawProfile struct {
	Version    int64               `toml:"version"`
	Name       string              `toml:"name"`
	FleetID    string              `toml:"fleet_id"`
	Domain     string              `toml:"domain"`
	Address    string              `toml:"address"`
	KnockPorts []int64             `toml:"knock_ports"`
	ServerID   string              `toml:"server_id"`
	GateKey    string              `toml:"gate_key"`
	Client     string              `toml:"client"`
	ID         string              `toml:"id"`
	Key        string              `toml:"key"`
	Receipts   bool                `toml:"receipts"`
	Recovery   bool                `toml:"recovery"`
	Source     string              `toml:"source"`
	Services   map[string][]string `toml:"services"`
	Gateways   map[string]string   `toml:"gateways"`
	Locked     *rawLock            `toml:"locked"`
}

// ReadProfile reads a host profile, NAME.toml, which only its owner may be able to read. For a locked profile its error
// is ErrLocked.
func ReadProfile(path string) (*Profile, error) {
	s, err := ReadStored(path)
	if err != nil {
		return nil, err
	}
	if s.Locked() {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	return &s.Profile, nil
}

// ReadStored is ReadProfile for a profile that may be locked.
func ReadStored(path string) (*StoredProfile, error) {
	name, err := fileName(path)
	if err != nil {
		return nil, err
	}
	var raw rawProfile
	d, err := readSecret(place.FolderOf(path), filepath.Base(path), maxProfileFile, place.Own, &raw, strict.Schema{})
	if err != nil {
		return nil, err
	}
	return raw.profile(d, name)
}

func (raw *rawProfile) profile(d *strict.Document, name string) (*StoredProfile, error) {
	r := reader{doc: d}
	if !raw.kind(&r) || !r.needs("name", "knock_ports", "client", "receipts") || !raw.keys(&r) {
		return nil, errors.Join(r.problems...)
	}
	if raw.Name != name {
		r.must("name", errors.New("differs from the file's name"))
	}
	p := &StoredProfile{Profile: Profile{
		Name: raw.Name, Address: raw.Address, KnockPorts: r.ports("knock_ports", raw.KnockPorts),
		Client: raw.Client, Services: raw.Services, Receipts: raw.Receipts, Source: raw.Source,
		Recovery: raw.Recovery, Gateways: raw.Gateways,
	}}
	if p.Source == "auto" {
		p.Source = ""
	}
	if p.Services == nil {
		p.Services = make(map[string][]string)
	}
	r.identify(p, raw)
	if len(r.problems) == 0 {
		if bad := p.firstInvalid(p.Locked()); bad != nil {
			r.must(bad.key, bad.err)
		}
	}
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return p, nil
}

// kind reports whether the file has what is special about a host, or about a fleet, but not both.
func (raw *rawProfile) kind(r *reader) bool {
	foreign, why := []string{"domain", "gateways"}, "is only for a fleet, which has a fleet_id"
	if r.doc.Has("fleet_id") {
		foreign, why = []string{"address", "server_id", "id", "recovery"},
			"is not for a fleet, which has fleet_id, domain and [gateways]"
	}
	for _, key := range foreign {
		if r.doc.Has(key) {
			r.must(key, errors.New(why))
		}
	}
	return len(r.problems) == 0 && (r.doc.Has("fleet_id") || r.needs("address", "server_id"))
}

// keys reports whether the keys are present, open or sealed, but not both.
func (raw *rawProfile) keys(r *reader) bool {
	if raw.Locked == nil && r.doc.Has("fleet_id") {
		return r.needs("gate_key", "key")
	}
	if raw.Locked == nil {
		return r.needs("gate_key", "id", "key")
	}
	for _, key := range []string{"gate_key", "id", "key"} {
		if r.doc.Has(key) {
			r.must(key, errors.New("must not be in plain text in a locked profile"))
		}
	}
	return len(r.problems) == 0
}

// identify reads the ids and keys.
func (r *reader) identify(p *StoredProfile, raw *rawProfile) {
	fleet := r.doc.Has("fleet_id")
	var err error
	if fleet {
		r.fleet(&p.Profile, raw)
	} else {
		p.ServerID, err = ParseServerID(raw.ServerID)
		r.must("server_id", err)
	}
	if raw.Locked != nil {
		p.lock = r.lock(raw.Locked)
		return
	}
	p.Gate, err = ParseGateKey(raw.GateKey)
	r.must("gate_key", err)
	if fleet {
		p.Key, err = parseKey(raw.Key)
		r.must("key", err)
		return
	}
	p.ID, p.Key = r.credential("", raw.ID, raw.Key)
}

// fleet reads what only the profile of a fleet has.
func (r *reader) fleet(p *Profile, raw *rawProfile) {
	var err error
	p.Fleet, err = ParseFleetID(raw.FleetID)
	r.must("fleet_id", err)
	p.Address = raw.Domain
	if p.Gateways == nil {
		p.Gateways = make(map[string]string)
	}
}

func (r *reader) ports(key string, numbers []int64) []uint16 {
	ports := make([]uint16, len(numbers))
	for i, n := range numbers {
		if n < 1 || n > 65535 {
			r.must(key, fmt.Errorf("%d is not a port", n))
			continue
		}
		ports[i] = uint16(n)
	}
	return ports
}

// WriteProfile writes dir/NAME.toml, 0600, whole or not at all. It replaces an existing profile only if replace is set
// (place.ErrExists).
func WriteProfile(dir string, p *Profile, replace bool) error {
	return WriteStored(dir, &StoredProfile{Profile: *p}, replace)
}

// text returns the profile's file.
func (p *Profile) text() []byte { return p.textWith(nil) }

// textWith returns the profile's file, with its keys or with a lock instead. A valid profile needs no escapes in TOML.
func (p *Profile) textWith(l *lock) []byte {
	var b strings.Builder
	what := "this host"
	if p.IsFleet() {
		what = "the gateways of this fleet"
	}
	fmt.Fprintf(&b, "# How to knock on %s. It holds secrets: nobody else may read this file.\n", what)
	if l != nil {
		b.WriteString("# It is locked: unlock it before you change anything, or it can no longer be opened.\n")
	}
	source := p.Source
	if source == "" {
		source = "auto"
	}
	ports := make([]string, len(p.KnockPorts))
	for i, port := range p.KnockPorts {
		ports[i] = strconv.Itoa(int(port))
	}
	where, whose := fmt.Sprintf("address = %q\n", p.Address), fmt.Sprintf("server_id = \"%s\"\n", p.ServerID)
	if p.IsFleet() {
		where, whose = "", fmt.Sprintf("fleet_id = \"%s\"\n", p.Fleet)
	}
	if p.IsFleet() && p.Address != "" {
		where = fmt.Sprintf("domain = %q\n", p.Address)
	}
	fmt.Fprintf(&b, "version = %d\nname = %q\n%sknock_ports = [%s]\n%s", strict.Version, p.Name, where,
		strings.Join(ports, ", "), whose)
	switch {
	case l != nil:
		fmt.Fprintf(&b, "client = %q\nlocked = %s\n", p.Client, l.text())
	case p.IsFleet():
		fmt.Fprintf(&b, "gate_key = \"%s\"\nclient = %q\nkey = \"%s\"\n", p.Gate.Reveal(), p.Client, p.Key.Reveal())
	default:
		fmt.Fprintf(&b, "gate_key = \"%s\"\nclient = %q\n", p.Gate.Reveal(), p.Client)
		fmt.Fprintf(&b, "id = \"%s\"\nkey = \"%s\"\n", p.ID, p.Key.Reveal())
	}
	fmt.Fprintf(&b, "receipts = %t\nsource = %q\n", p.Receipts, source)
	if p.Recovery {
		b.WriteString("recovery = true # each use is one of a few\n")
	}
	b.WriteString("\n[services]\n")
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		fmt.Fprintf(&b, "%s = %s\n", name, list(p.Services[name]))
	}
	if len(p.Gateways) > 0 {
		b.WriteString("\n[gateways]\n")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Gateways)) {
		fmt.Fprintf(&b, "%s = %q\n", name, p.Gateways[name])
	}
	return []byte(b.String())
}
