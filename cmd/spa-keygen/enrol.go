package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// profileOf returns the profile for a client of the gateway.
func profileOf(c *config.Config, client *keys.Client) (*keys.Profile, error) {
	gates, err := keys.ReadGate(filepath.Join(c.Dir, config.GateFile))
	if err != nil {
		return nil, err
	}
	profile := &keys.Profile{
		Name:     c.Name,
		Address:  c.Address,
		ServerID: c.ServerID,
		Gate:     gates.Current,
		Client:   client.Name,
		ID:       client.ID,
		Key:      client.Key,
		Services: make(map[string][]string),
		Receipts: c.Receipts,
		Recovery: client.Recovery > 0,
	}
	if name := c.Name + "-" + client.Name; profile.Recovery && service.ValidName(name) == nil {
		profile.Name = name // beside the host that the user may have
	}
	for _, port := range c.KnockPorts {
		profile.KnockPorts = append(profile.KnockPorts, port.Port)
	}
	for _, text := range client.Allow {
		if s, ok := c.Service(text); ok && len(s.Ports) > 0 { // a profile lists services with their ports
			profile.Services[text] = portTexts(s)
		}
	}
	return profile, nil
}

func portTexts(service config.Service) []string {
	texts := make([]string, len(service.Ports))
	for i, ports := range service.Ports {
		texts[i] = ports.String()
	}
	return texts
}

// give hands out a client's token: of a recovery key as a page to print.
func give(cmd *cobra.Command, h enrol.Handing, client *keys.Client, p *keys.Profile) error {
	token := p.Token()
	if !p.Recovery {
		return h.Give(cmd, client.Name, token, "enrolment token", token)
	}
	text, err := page(client, p)
	if err != nil {
		return err
	}
	return h.Give(cmd, client.Name, token, "recovery page", text)
}
