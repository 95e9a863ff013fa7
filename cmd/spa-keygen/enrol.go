package main

import (
	"path/filepath"

	"sallyport/keys"
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
	}
	for _, port := range c.KnockPorts {
		profile.KnockPorts = append(profile.KnockPorts, port.Port)
	}
	for _, text := range client.Allow {
		if service, ok := c.Service(text); ok && len(service.Ports) > 0 { // a profile lists services with their ports
			profile.Services[text] = portTexts(service)
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
