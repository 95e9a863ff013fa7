package office

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/fleet"
)

// Settings are what office.toml says.
type Settings struct {
	Name       string
	Domain     string // in which gateways are found by their name; or empty
	Fleet      keys.FleetID
	Key        ed25519.PublicKey   // gateways trust bundles that it verifies
	KnockPorts []uint16            // UDP ports that every gateway listens on
	Receipts   bool                // gateways answer
	Services   map[string][]string // ports of each service as text
}

// An Office is an office as its files are. Nothing in it is secret.
type Office struct {
	Dir string
	Settings
	Admins    []*Admin
	Gateways  []*Gateway // sorted by name, also retired ones
	Clients   []*Client  // sorted by name, also revoked ones
	Published Published
}

// KeyText returns the key that signs bundles as office.toml has it.
func (s Settings) KeyText() string { return base64Key(s.Key) }

// ErrNone means that a directory is not an office.
var ErrNone = errors.New("no fleet's office here")

// patience is how long a command waits for another.
const patience = time.Minute

// Load reads an office, between the changes of other commands. It refuses one whose files contradict each other: its
// error names the files.
func Load(dir string) (o *Office, err error) {
	err = Change(dir, func(loaded *Office) error {
		o = loaded
		return nil
	})
	return o, err
}

// load is Load for a caller that holds the lock.
func load(dir string) (*Office, error) {
	o := &Office{Dir: dir}
	text, err := read(o.path(officeFile), maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	if o.Settings, err = parseSettings(o.path(officeFile), text); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(o.path(vaultFile)); err != nil {
		return nil, problem(o.path(vaultFile), "missing: without it nobody can publish")
	}
	if err := errors.Join(o.readAdmins(), o.readGateways(), o.readClients(), o.readPublished()); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	return o, nil
}

// Change calls change with an office that no other command changes meanwhile.
func Change(dir string, change func(*Office) error) error {
	unlock, err := place.LockAlone(dir, patience)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", dir, ErrNone)
		}
		return err
	}
	defer unlock()
	o, err := load(dir)
	if err != nil {
		return err
	}
	return change(o)
}

type rawOffice struct {
	Version    int64               `toml:"version"`
	Name       string              `toml:"name"`
	Domain     string              `toml:"domain"`
	Fleet      string              `toml:"fleet"`
	Key        string              `toml:"key"`
	KnockPorts []int64             `toml:"knock_ports"`
	Receipts   *bool               `toml:"receipts"`
	Services   map[string][]string `toml:"services"`
}

func parseSettings(path string, text []byte) (Settings, error) {
	var raw rawOffice
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return Settings{}, err
	}
	s := Settings{Name: raw.Name, Domain: raw.Domain, Services: raw.Services,
		Receipts: raw.Receipts == nil || *raw.Receipts}
	var problems []error
	must := func(key string, err error) {
		if err != nil {
			problems = append(problems, doc.Problem(key, "%s", err))
		}
	}
	must("name", service.ValidName(s.Name))
	s.Fleet, err = keys.ParseFleetID(raw.Fleet)
	must("fleet", err)
	s.Key, err = fleet.ParseOfficeKey(raw.Key)
	must("key", err)
	for _, port := range raw.KnockPorts {
		if port < 1 || port > 65535 {
			must("knock_ports", errors.New("knock ports are 1 to 65535"))
		}
		s.KnockPorts = append(s.KnockPorts, uint16(port))
	}
	if len(problems) == 0 {
		// A token must hold all of it.
		err = s.profile(&keys.FleetKey{Client: "a", Key: keys.NewKey()}, keys.NewGateKey(), nil, nil).Valid()
		if err != nil {
			problems = append(problems, problem(path, "no token could be made: %v", err))
		}
	}
	return s, errors.Join(problems...)
}

// text returns office.toml.
func (s Settings) text() []byte {
	var b strings.Builder
	b.WriteString("# The office of a fleet of gateways: spa-fleet(8). Nothing in this file is secret.\n")
	fmt.Fprintf(&b, "version = %d\nname = %q\n", strict.Version, s.Name)
	if s.Domain != "" {
		fmt.Fprintf(&b, "domain = %q\n", s.Domain)
	}
	fmt.Fprintf(&b, "fleet = %q\nkey = %q\nknock_ports = [%s]\nreceipts = %t\n", s.Fleet,
		base64.StdEncoding.EncodeToString(s.Key), portsText(s.KnockPorts), s.Receipts)
	b.WriteString("\n[services]  # what clients may be allowed to open, as the gateways' server.toml has it\n")
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		fmt.Fprintf(&b, "%s = [%s]\n", name, quotedList(s.Services[name]))
	}
	return []byte(b.String())
}

func portsText(ports []uint16) string {
	texts := make([]string, len(ports))
	for i, port := range ports {
		texts[i] = strconv.Itoa(int(port))
	}
	return strings.Join(texts, ", ")
}

func quotedList(texts []string) string {
	quoted := make([]string, len(texts))
	for i, text := range texts {
		quoted[i] = strconv.Quote(text)
	}
	return strings.Join(quoted, ", ")
}

// profile returns a client's profile. allow are its services, addresses those of the gateways by name.
func (s Settings) profile(k *keys.FleetKey, gate keys.GateKey, allow []string,
	addresses map[string]string) *keys.Profile {
	p := &keys.Profile{Name: s.Name, Address: s.Domain, KnockPorts: s.KnockPorts, Gate: gate, Client: k.Client, Key: k.Key,
		Services: make(map[string][]string), Receipts: s.Receipts, Fleet: s.Fleet, Gateways: make(map[string]string)}
	if allow == nil {
		maps.Copy(p.Services, s.Services)
	}
	for _, name := range allow {
		if ports, ok := s.Services[name]; ok {
			p.Services[name] = ports
		}
	}
	for name, address := range addresses {
		if s.Domain != "" && address == name+"."+s.Domain {
			address = ""
		}
		p.Gateways[name] = address
	}
	return p
}

// CheckAllow returns an error if an entry of a client's allow list is no service of the fleet, and no port of one.
func (s Settings) CheckAllow(entry string) error {
	if _, ok := s.Services[entry]; ok {
		return nil
	}
	if !strings.Contains(entry, "/") {
		return errors.New("the fleet has no such service")
	}
	ports, err := service.ParsePorts(entry)
	if err != nil {
		return err
	}
	var all []service.Ports
	for _, texts := range s.Services {
		for _, text := range texts {
			if p, err := service.ParsePorts(text); err == nil {
				all = append(all, p)
			}
		}
	}
	for port := int(ports.Low); port <= int(ports.High); port++ {
		if !service.Covers(all, ports.Proto, uint16(port)) {
			return fmt.Errorf("no service of the fleet has %s/%d", ports.Proto, port)
		}
	}
	return nil
}
