package office

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
	"sallyport/spa/fleet"
)

// A Gateway is what gateways/NAME.toml says.
type Gateway struct {
	Name      string
	Address   string
	Site      Site // the zero value: it shares no address
	Retired   time.Time
	Recipient *age.HybridRecipient
	text      []byte
}

// A Site is a name that several gateways, its members, share with an address. Clients know only the name.
type Site struct {
	Name    string
	Address string // empty: the name in the fleet's domain
}

// Place returns the name that clients know: that of the site, or the gateway's own.
func (g *Gateway) Place() string { return cmp.Or(g.Site.Name, g.Name) }

// ErrUnknown means that the office has no such gateway, client or administrator.
var ErrUnknown = errors.New("not in this office")

// ErrReplaces means that a gateway of this name has another key, or is retired.
var ErrReplaces = errors.New("has another key in this office, or is retired")

type rawGateway struct {
	Version     int64      `toml:"version"`
	Address     string     `toml:"address"`
	Recipient   string     `toml:"recipient"`
	Site        *string    `toml:"site"`
	SiteAddress *string    `toml:"site_address"`
	Retired     *time.Time `toml:"retired"`
}

func (o *Office) readGateways() error {
	list, err := names(o.path(gatewaysDir), keys.Suffix)
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range list {
		g, err := readGateway(o.gatewayPath(name), name)
		o.Gateways, problems = append(o.Gateways, g), append(problems, err)
	}
	return errors.Join(problems...)
}

func readGateway(path, name string) (*Gateway, error) {
	text, err := read(path, maxFile)
	if err != nil {
		return nil, err
	}
	var raw rawGateway
	doc, err := strict.Decode(path, text, &raw)
	if err != nil {
		return nil, err
	}
	g := &Gateway{Name: name, Address: raw.Address, text: text}
	var problems []error
	must := func(key string, err error) {
		if err != nil {
			problems = append(problems, doc.Problem(key, "%s", err))
		}
	}
	_, _, err = service.SplitAddress(raw.Address)
	must("address", err)
	g.Recipient, err = fleet.ParseRecipient(raw.Recipient)
	must("recipient", err)
	if raw.Site != nil {
		g.Site.Name = *raw.Site
		must("site", service.ValidName(g.Site.Name))
	}
	if raw.SiteAddress != nil {
		g.Site.Address = *raw.SiteAddress
		_, _, err = service.SplitAddress(g.Site.Address)
		if raw.Site == nil {
			err = errors.New("is for gateways with a site")
		}
		must("site_address", err)
	}
	if raw.Retired != nil {
		g.Retired = raw.Retired.UTC()
	}
	return g, errors.Join(problems...)
}

func (g *Gateway) write(o *Office, how place.Placing) error {
	var b strings.Builder
	fmt.Fprintf(&b, "version = %d\naddress = %q\n", strict.Version, g.Address)
	fmt.Fprintf(&b, "recipient = %q\n", g.Recipient)
	if g.Site.Name != "" {
		fmt.Fprintf(&b, "site = %q\n", g.Site.Name)
	}
	if g.Site.Address != "" {
		fmt.Fprintf(&b, "site_address = %q\n", g.Site.Address)
	}
	if !g.Retired.IsZero() {
		fmt.Fprintf(&b, "retired = %s\n", g.Retired.UTC().Format(time.RFC3339))
	}
	return write(o.gatewayPath(g.Name), []byte(b.String()), how)
}

// Gateway returns the gateway of this name, or nil.
func (o *Office) Gateway(name string) *Gateway {
	i := slices.IndexFunc(o.Gateways, func(g *Gateway) bool { return g.Name == name })
	if i < 0 {
		return nil
	}
	return o.Gateways[i]
}

// Active returns the gateways that are not retired.
func (o *Office) Active() []*Gateway {
	return slices.DeleteFunc(slices.Clone(o.Gateways), func(g *Gateway) bool { return !g.Retired.IsZero() })
}

// Addresses returns the addresses that clients know, by name: those of the sites, and of the gateways that have none,
// unless all their gateways are retired.
func (o *Office) Addresses() map[string]string {
	addresses := make(map[string]string)
	for _, g := range o.Active() {
		addresses[g.Place()] = o.address(g)
	}
	return addresses
}

func (o *Office) address(g *Gateway) string {
	if g.Site.Name == "" {
		return g.Address
	}
	return cmp.Or(g.Site.Address, g.Site.Name+"."+o.Domain)
}

// Members returns the gateways of a site that are not retired.
func (o *Office) Members(site string) []*Gateway {
	return slices.DeleteFunc(o.Active(), func(g *Gateway) bool { return g.Site.Name != site })
}

// checkGateways refuses gateways that could be taken for one another.
func (o *Office) checkGateways() error {
	var problems []error
	byAddress, byRecipient := make(map[string]*Gateway), make(map[string]*Gateway)
	for _, g := range o.Active() {
		path, address := o.gatewayPath(g.Name), o.address(g)
		if other := byAddress[address]; other != nil && (g.Site.Name == "" || other.Site.Name != g.Site.Name) {
			problems = append(problems, problem(path, "gateway %s has the same address%s", other.Name, sharing(g, other)))
		}
		if other := byRecipient[g.Recipient.String()]; other != nil {
			problems = append(problems, problem(path, "gateway %s has the same key: each gateway makes its own", other.Name))
		}
		byAddress[address], byRecipient[g.Recipient.String()] = g, g
	}
	return errors.Join(append(problems, o.checkSites())...)
}

// sharing hints at sites.
func sharing(g, other *Gateway) string {
	if g.Site.Name == "" && other.Site.Name == "" {
		return ": if they share it, both need the same site"
	}
	return ""
}

// checkSites refuses sites that could be taken for a gateway, and members that contradict each other. Names of retired
// gateways count: they have the keys of a server of that name.
func (o *Office) checkSites() error {
	var problems []error
	first := make(map[string]*Gateway)
	for _, g := range o.Gateways {
		site, path := g.Site.Name, o.gatewayPath(g.Name)
		switch other := first[site]; {
		case site == "":
			continue
		case o.Gateway(site) != nil:
			problems = append(problems, problem(path, "there is a gateway %s: a site needs a name of its own", site))
		case g.Site.Address == "" && o.Domain == "":
			problems = append(problems, problem(path, "site %s needs a site_address: the fleet has no domain", site))
		case other != nil && other.Site != g.Site && g.Retired.IsZero() && other.Retired.IsZero():
			problems = append(problems, problem(path, "gateway %s has another site_address for site %s", other.Name, site))
		}
		if o := first[site]; o == nil || !o.Retired.IsZero() {
			first[site] = g
		}
	}
	return errors.Join(problems...)
}

// ErrMoves means that a gateway is a member of another site. Clients know it by that.
var ErrMoves = errors.New("is a member of another site")

// AddGateway adds a gateway, or gives one that is known the address and key of its new request. The zero site leaves a
// known gateway in its own. If the gateway is known with another key, or retired, it returns ErrReplaces, unless
// replace is set.
func (o *Office) AddGateway(r fleet.Request, site Site, replace bool) (*Gateway, error) {
	g := &Gateway{Name: r.Name, Address: r.Address, Recipient: r.Recipient, Site: site}
	for _, port := range o.KnockPorts {
		if !slices.Contains(r.KnockPorts, port) {
			return nil, fmt.Errorf("%s does not listen on port %d, on which the fleet knocks (knock_ports in %s)", r.Name, port,
				o.path(officeFile))
		}
	}
	known := o.Gateway(r.Name)
	if known != nil {
		if site == (Site{}) {
			g.Site = known.Site
		}
		if known.Site.Name != "" && known.Site.Name != g.Site.Name {
			return nil, fmt.Errorf("gateway %s %w: %s", r.Name, ErrMoves, known.Site.Name)
		}
	}
	if known != nil && (known.Recipient.String() != r.Recipient.String() || !known.Retired.IsZero()) && !replace {
		return nil, fmt.Errorf("gateway %s %w", r.Name, ErrReplaces)
	}
	if err := o.with(known, g).check(); err != nil {
		return nil, err
	}
	how := place.OnlyNew
	if known != nil {
		how = place.OnlyOver
	}
	return g, g.write(o, how)
}

// with returns the office with another gateway in place of one, which may be nil.
func (o *Office) with(known, g *Gateway) *Office {
	next := *o
	next.Gateways = slices.DeleteFunc(slices.Clone(o.Gateways), func(other *Gateway) bool { return other == known })
	next.Gateways = append(next.Gateways, g)
	return &next
}

func (o *Office) check() error { return errors.Join(o.checkGateways(), o.checkClients()) }

// Retire marks a gateway as retired: it gets no more bundles.
func (o *Office) Retire(name string, now time.Time) (*Gateway, error) {
	known := o.Gateway(name)
	if known == nil {
		return nil, fmt.Errorf("gateway %s: %w", name, ErrUnknown)
	}
	if !known.Retired.IsZero() {
		return known, nil
	}
	g := *known
	g.Retired = now.UTC().Truncate(time.Second)
	if err := o.with(known, &g).checkClients(); err != nil {
		return nil, err
	}
	return &g, g.write(o, place.OnlyOver)
}

// Bundle returns the name of the file with a gateway's bundle.
func (g *Gateway) Bundle() string { return g.Name + bundleSuffix }

// bundleSuffix ends the names of bundles.
const bundleSuffix = ".bundle"

// takenSuffix ends the names of gateways' reports.
const takenSuffix = ".taken"

func bundlePath(dir, gateway string) string { return filepath.Join(dir, gateway+bundleSuffix) }
