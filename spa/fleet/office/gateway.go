package office

import (
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
	Retired   time.Time
	Recipient *age.HybridRecipient
	text      []byte
}

// ErrUnknown means that the office has no such gateway, client or administrator.
var ErrUnknown = errors.New("not in this office")

// ErrReplaces means that a gateway of this name has another key, or is retired.
var ErrReplaces = errors.New("has another key in this office, or is retired")

type rawGateway struct {
	Version   int64      `toml:"version"`
	Address   string     `toml:"address"`
	Recipient string     `toml:"recipient"`
	Retired   *time.Time `toml:"retired"`
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
	if raw.Retired != nil {
		g.Retired = raw.Retired.UTC()
	}
	return g, errors.Join(problems...)
}

func (g *Gateway) write(o *Office, how place.Placing) error {
	var b strings.Builder
	fmt.Fprintf(&b, "version = %d\naddress = %q\n", strict.Version, g.Address)
	fmt.Fprintf(&b, "recipient = %q\n", g.Recipient)
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

// Addresses returns the addresses of the gateways that are not retired, by name.
func (o *Office) Addresses() map[string]string {
	addresses := make(map[string]string)
	for _, g := range o.Active() {
		addresses[g.Name] = g.Address
	}
	return addresses
}

// checkGateways refuses gateways that could be taken for one another.
func (o *Office) checkGateways() error {
	var problems []error
	byAddress, byRecipient := make(map[string]*Gateway), make(map[string]*Gateway)
	for _, g := range o.Active() {
		path := o.gatewayPath(g.Name)
		if other := byAddress[g.Address]; other != nil {
			problems = append(problems, problem(path, "gateway %s has the same address", other.Name))
		}
		if other := byRecipient[g.Recipient.String()]; other != nil {
			problems = append(problems, problem(path, "gateway %s has the same key: each gateway makes its own", other.Name))
		}
		byAddress[g.Address], byRecipient[g.Recipient.String()] = g, g
	}
	return errors.Join(problems...)
}

// AddGateway adds a gateway, or gives one that is known the address and key of its new request. If the gateway is known
// with another key, or retired, it returns ErrReplaces, unless replace is set.
func (o *Office) AddGateway(r fleet.Request, replace bool) (*Gateway, error) {
	g := &Gateway{Name: r.Name, Address: r.Address, Recipient: r.Recipient}
	for _, port := range o.KnockPorts {
		if !slices.Contains(r.KnockPorts, port) {
			return nil, fmt.Errorf("%s does not listen on port %d, on which the fleet knocks (knock_ports in %s)", r.Name, port,
				o.path(officeFile))
		}
	}
	known := o.Gateway(r.Name)
	if known != nil && (known.Recipient.String() != r.Recipient.String() || !known.Retired.IsZero()) && !replace {
		return nil, fmt.Errorf("gateway %s %w", r.Name, ErrReplaces)
	}
	next := *o
	next.Gateways = slices.DeleteFunc(slices.Clone(o.Gateways), func(other *Gateway) bool { return other == known })
	next.Gateways = append(next.Gateways, g)
	if err := errors.Join(next.checkGateways(), next.checkClients()); err != nil {
		return nil, err
	}
	how := place.OnlyNew
	if known != nil {
		how = place.OnlyOver
	}
	return g, g.write(o, how)
}

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
	next := *o
	next.Gateways = slices.DeleteFunc(slices.Clone(o.Gateways), func(other *Gateway) bool { return other == known })
	next.Gateways = append(next.Gateways, &g)
	if err := next.checkClients(); err != nil {
		return nil, err
	}
	return &g, g.write(o, place.OnlyOver)
}

// Bundle returns the name of the file with a gateway's bundle.
func (g *Gateway) Bundle() string { return g.Name + bundleSuffix }

// bundleSuffix ends the names of bundles.
const bundleSuffix = ".bundle"

func bundlePath(dir, gateway string) string { return filepath.Join(dir, gateway+bundleSuffix) }
