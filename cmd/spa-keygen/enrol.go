package main

import (
	"path/filepath"

	"sallyport/keys"
	"sallyport/spa/config"
)

// enrol makes a client of the gateway: the server's side of it, and what the client is given.
func enrol(c *config.Config, name string, allow []string) (*keys.Client, *keys.Profile, error) {
	gates, err := keys.ReadGate(filepath.Join(c.Dir, config.GateFile))
	if err != nil {
		return nil, nil, err
	}
	client := &keys.Client{Name: name, ID: keys.NewID(), Key: keys.NewKey(), Allow: allow}
	profile := &keys.Profile{
		Name:     c.Name,
		Address:  c.Address,
		ServerID: c.ServerID,
		Gate:     gates.Current,
		Client:   name,
		ID:       client.ID,
		Key:      client.Key,
		Services: make(map[string][]string),
		Receipts: c.Receipts,
	}
	for _, port := range c.KnockPorts {
		profile.KnockPorts = append(profile.KnockPorts, port.Port)
	}
	for _, text := range allow {
		if service, ok := c.Service(text); ok {
			profile.Services[text] = portTexts(service)
		}
	}
	return client, profile, nil
}

func portTexts(service config.Service) []string {
	texts := make([]string, len(service.Ports))
	for i, ports := range service.Ports {
		texts[i] = ports.String()
	}
	return texts
}
