package office

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/fleet"
)

// Published is what published.toml says about the last publish. It is zero before the first.
type Published struct {
	Serial     int64
	Time       time.Time
	By         string // the administrator
	To         string // the directory, from the office's if it is relative
	Unfinished []Begun
	Gateways   map[string]string   // digests of what each file said
	Clients    map[string][]string // of the terms and of the sealed key
	Taken      map[string][]Proof  // by gateway, the newest first
}

// A Begun is a publish after the last one. It failed or was killed, and some gateways may have its bundles.
type Begun struct {
	Serial int64     `toml:"serial"`
	Time   time.Time `toml:"time"`
}

// maxBegun is how many of them are kept.
const maxBegun = 50

// A Proof is the key that verifies the report of a gateway on its bundle with this serial: see fleet.Taken.
type Proof struct {
	Serial int64
	Key    ed25519.PublicKey
}

// mostProofs is how many are kept for a gateway: of the last publish, the one before, and one that was interrupted.
const mostProofs = 3

type rawPublished struct {
	Version    int64               `toml:"version"`
	Serial     int64               `toml:"serial"`
	Time       time.Time           `toml:"time"`
	By         string              `toml:"by"`
	To         string              `toml:"to"`
	Unfinished []Begun             `toml:"unfinished"`
	Gateways   map[string]string   `toml:"gateways"`
	Clients    map[string][]string `toml:"clients"`
	Taken      map[string][]string `toml:"taken"`
}

func (o *Office) readPublished() error {
	path := o.path(publishedFile)
	text, err := read(path, maxPublished)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var raw rawPublished
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return err
	}
	if raw.Serial < 0 || raw.Serial == math.MaxInt64 {
		return doc.Problem("serial", "should be a whole number")
	}
	if err := raw.checkNames(doc); err != nil {
		return err
	}
	taken, err := raw.proofs(doc)
	if err != nil {
		return err
	}
	o.Published = Published{raw.Serial, raw.Time.UTC(), raw.By, raw.To, raw.Unfinished, raw.Gateways, raw.Clients, taken}
	return nil
}

// proofs parses "SERIAL KEY".
func (raw *rawPublished) proofs(doc *strict.Document) (map[string][]Proof, error) {
	taken := make(map[string][]Proof, len(raw.Taken))
	for name, list := range raw.Taken {
		for _, text := range list {
			serial, key, _ := strings.Cut(text, " ")
			n, err := strconv.ParseInt(serial, 10, 64)
			public, keyErr := fleet.ParseOfficeKey(key)
			if err != nil || keyErr != nil || service.ValidName(name) != nil {
				return nil, doc.Problem("taken", "should have serials and keys, by gateway")
			}
			taken[name] = append(taken[name], Proof{n, public})
		}
	}
	return taken, nil
}

// withProofs returns what Taken is after a publish with these keys for these gateways.
func (p *Published) withProofs(gateways []*Gateway, serial int64, keys []ed25519.PublicKey) map[string][]Proof {
	taken := make(map[string][]Proof, len(gateways))
	for i, g := range gateways {
		list := append([]Proof{{serial, keys[i]}}, p.Taken[g.Name]...)
		taken[g.Name] = list[:min(len(list), mostProofs)]
	}
	return taken
}

// checkNames refuses names that are none: commands print them, and they may be made for the terminal that shows them.
func (raw *rawPublished) checkNames(doc *strict.Document) error {
	if raw.By != "" && service.ValidName(raw.By) != nil {
		return doc.Problem("by", "should be the name of an administrator")
	}
	for name := range raw.Gateways {
		if err := service.ValidName(name); err != nil {
			return doc.Problem("gateways", "has a name that no gateway has: %s", err)
		}
	}
	for name := range raw.Clients {
		if err := service.ValidName(name); err != nil {
			return doc.Problem("clients", "has a name that no client has: %s", err)
		}
	}
	return nil
}

func (p *Published) text() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by spa-fleet publish.\nversion = %d\nserial = %d\ntime = %s\nby = %q\nto = %s\n",
		strict.Version, p.Serial, p.Time.UTC().Format(time.RFC3339), p.By, strict.Quote(p.To))
	if len(p.Unfinished) > 0 {
		b.WriteString("unfinished = [\n")
		for _, begun := range p.Unfinished {
			fmt.Fprintf(&b, "  {serial = %d, time = %s},\n", begun.Serial, begun.Time.UTC().Format(time.RFC3339))
		}
		b.WriteString("]\n")
	}
	b.WriteString("\n[gateways]\n")
	for _, name := range slices.Sorted(maps.Keys(p.Gateways)) {
		fmt.Fprintf(&b, "%s = %q\n", name, p.Gateways[name])
	}
	b.WriteString("\n[clients]\n")
	for _, name := range slices.Sorted(maps.Keys(p.Clients)) {
		fmt.Fprintf(&b, "%s = [%s]\n", name, quotedList(p.Clients[name]))
	}
	b.WriteString("\n# With these keys, gateways prove which bundle they have taken over.\n[taken]\n")
	for _, name := range slices.Sorted(maps.Keys(p.Taken)) {
		var list []string
		for _, proof := range p.Taken[name] {
			list = append(list, fmt.Sprintf("%d %s", proof.Serial, base64Key(proof.Key)))
		}
		fmt.Fprintf(&b, "%s = [%s]\n", name, quotedList(list))
	}
	return []byte(b.String())
}

func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return fmt.Sprintf("%x", sum[:16])
}

// state returns the digests of the office as it is.
func (o *Office) state() (gateways map[string]string, clients map[string][]string) {
	gateways, clients = make(map[string]string, len(o.Gateways)), make(map[string][]string, len(o.Clients))
	for _, g := range o.Gateways {
		gateways[g.Name] = digest(g.text)
	}
	for _, c := range o.Clients {
		clients[c.Name] = []string{digest(c.text), digest(c.sealed)}
	}
	return gateways, clients
}

// Changes returns what has changed since the last publish, each in a few words.
func (o *Office) Changes() []string {
	gateways, clients := o.state()
	var list []string
	for _, name := range slices.Sorted(maps.Keys(gateways)) {
		switch was, ok := o.Published.Gateways[name]; {
		case !ok:
			list = append(list, "gateway "+name+": new")
		case was != gateways[name]:
			list = append(list, "gateway "+name+": changed")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Published.Gateways)) {
		if gateways[name] == "" {
			list = append(list, "gateway "+name+": gone")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(clients)) {
		was, now := o.Published.Clients[name], clients[name]
		switch {
		case len(was) != 2:
			list = append(list, "client "+name+": new")
		case was[0] != now[0] && !o.Client(name).Revoked.IsZero():
			list = append(list, "client "+name+": revoked")
		case was[0] != now[0] && was[1] != now[1]:
			list = append(list, "client "+name+": terms, key")
		case was[0] != now[0]:
			list = append(list, "client "+name+": terms")
		case was[1] != now[1]:
			list = append(list, "client "+name+": key")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Published.Clients)) {
		if clients[name] == nil {
			list = append(list, "client "+name+": gone")
		}
	}
	return list
}
