package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/client/doctor"
)

// errFleet is returned if a fleet is named where one gateway is needed.
var errFleet = errors.New("is a fleet of gateways")

// target reads the profile that --host names, and returns the gateway's name if it is that of a fleet. What can be
// wrong with the gateway is reported before anyone is asked for a passphrase.
func (a *app) target(host string) (*keys.StoredProfile, string, error) {
	fleet, gateway, one := keys.SplitHost(host)
	if one && fleet == "" {
		return nil, "", cli.Misuse(fmt.Errorf("%q is not a host", host), "spa-client hosts lists the hosts")
	}
	s, err := a.stored(fleet)
	switch {
	case err != nil:
		return nil, "", err
	case s.IsFleet() && gateway == "":
		return nil, "", cli.Misuse(fmt.Errorf("%s %w", s.Name, errFleet), chooseGateway(&s.Profile))
	case !one:
		return s, "", nil
	case !s.IsFleet():
		return nil, "", cli.Misuse(fmt.Errorf("%s is one host, not a fleet", s.Name), "--host "+s.Name)
	}
	_, err = s.Gateway(gateway)
	if errors.Is(err, keys.ErrGateway) {
		return nil, "", cli.Fail(err, chooseGateway(&s.Profile)+"; for one that is new, import a newer token")
	}
	if err != nil {
		return nil, "", cli.Misuse(err, chooseGateway(&s.Profile))
	}
	return s, gateway, nil
}

// chooseGateway returns the hint that names a fleet's gateways.
func chooseGateway(p *keys.Profile) string {
	const most = 8
	hint := "choose one: --host " + p.Name + "/GATEWAY"
	names := gatewayNames(p)
	switch {
	case len(names) == 0:
		return hint
	case len(names) > most:
		return fmt.Sprintf("%s; spa-client hosts lists %d", hint, len(names))
	}
	return hint + " (" + strings.Join(names, ", ") + ")"
}

// gatewayNames returns the gateways that a profile lists, sorted.
func gatewayNames(p *keys.Profile) []string { return slices.Sorted(maps.Keys(p.Gateways)) }

// whole refuses the name of one gateway for a command that is for everything under one key.
func whole(cmd *cobra.Command, host string) error {
	fleet, _, ok := keys.SplitHost(host)
	if !ok || service.ValidName(fleet) != nil {
		return nil
	}
	return cli.Misuse(fmt.Errorf("%s is one gateway, and its fleet has one key for all", host),
		fmt.Sprintf("for the whole fleet: %s %s", cmd.CommandPath(), fleet))
}

// asHosts returns names of hosts as --host takes them.
func (a *app) asHosts(names []string) []string {
	out := slices.Clone(names)
	for i, name := range names {
		if s, err := a.stored(name); err == nil && s.IsFleet() {
			out[i] = name + "/GATEWAY"
		}
	}
	return out
}

// completeTarget offers hosts and the listed gateways of fleets.
func (a *app) completeTarget(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.names()
	directive := cobra.ShellCompDirectiveNoFileComp
	var targets []string
	for _, name := range names {
		s, err := a.stored(name)
		switch {
		case err != nil || !s.IsFleet():
			targets = append(targets, name)
		case len(s.Gateways) == 0:
			targets, directive = append(targets, name+"/"), directive|cobra.ShellCompDirectiveNoSpace
		}
		if err != nil {
			continue
		}
		for _, gateway := range gatewayNames(&s.Profile) {
			targets = append(targets, name+"/"+gateway)
		}
	}
	return targets, directive
}

// completeFleet offers the fleets.
func (a *app) completeFleet(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.names()
	fleets := slices.DeleteFunc(names, func(name string) bool {
		s, err := a.stored(name)
		return err != nil || !s.IsFleet()
	})
	return fleets, cobra.ShellCompDirectiveNoFileComp
}

// newToken returns how the administrator makes a new token for a locked profile whose passphrase is lost.
func newToken(p *keys.Profile) string {
	where := "on the gateway"
	if p.IsFleet() {
		where = "in the fleet's office"
	}
	return fmt.Sprintf("a new token (%s rotate, %s)", doctor.KeyTool(p), where)
}

// atGateway returns "gateway gw.example.net", or which gateway of a fleet that is.
func atGateway(p *keys.Profile) string {
	if _, gateway, ok := keys.SplitHost(p.Name); ok {
		return fmt.Sprintf("gateway %s of the fleet, at %s", gateway, p.Address)
	}
	return "gateway " + p.Address
}

// listed returns a fleet's gateways with their addresses.
func listed(p *keys.Profile) map[string]string {
	all := make(map[string]string)
	for name := range p.Gateways {
		if g, err := p.Gateway(name); err == nil {
			all[name] = g.Address
		}
	}
	return all
}

// whereis returns where a host is, or the gateways of a fleet.
func whereis(p *keys.Profile) string {
	switch {
	case !p.IsFleet():
		return p.Address
	case p.Address == "":
		return "its gateways"
	}
	return "*." + strings.TrimSuffix(p.Address, ".")
}
