package server

import (
	"reflect"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// A setting is a key of server.toml and its value.
type setting struct {
	key   string
	value func(c *config.Config) any
}

// restartSettings are the settings that a running server cannot change: files and sockets that it opened with
// privileges it has dropped, filters that are locked, and what identifies the guard.
var restartSettings = []setting{
	{"server_id", func(c *config.Config) any { return c.ServerID }},
	{"knock_ports", func(c *config.Config) any { return c.KnockPorts }},
	{"state", func(c *config.Config) any { return c.State }},
	{"capture.mode", func(c *config.Config) any { return c.Capture.Mode }},
	{"capture.interfaces", func(c *config.Config) any { return c.Capture.Interfaces }},
	{"capture.browser", func(c *config.Config) any { return c.Capture.Browser }},
	{"capture.gate", func(c *config.Config) any { return c.Capture.Gate }},
	{"firewall.backend", func(c *config.Config) any { return c.Firewall.Backend }},
	{"firewall.mode", func(c *config.Config) any { return c.Firewall.Mode }},
	{"firewall.persist", func(c *config.Config) any { return c.Firewall.Persist }},
	{"firewall.mark", func(c *config.Config) any { return c.Firewall.Mark }},
	{"firewall.admit", func(c *config.Config) any { return c.Firewall.Admit }},
	{"audit.file", func(c *config.Config) any { return c.Audit }},
	{"metrics.listen", func(c *config.Config) any { return c.Metrics.Listen }},
	{"metrics.clients", func(c *config.Config) any { return c.Metrics.Clients }},
	{"fleet.id", func(c *config.Config) any { return c.Fleet.ID }},
	{"fleet.office", func(c *config.Config) any { return c.Fleet.Office }},
	{"fleet.gateway", func(c *config.Config) any { return c.FleetName() }},
	{"fleet.share", func(c *config.Config) any { return c.Fleet.Share }},
	{"fleet.bundle", func(c *config.Config) any { return c.Fleet.Bundle }},
	{"fleet.taken", func(c *config.Config) any { return c.Fleet.Taken }},
	{"fleet.local_clients", func(c *config.Config) any { return c.Fleet.LocalClients }},
}

// liveSettings are the settings that a reload can change, besides the services.
var liveSettings = []setting{
	{"name", func(c *config.Config) any { return c.Name }},
	{"address", func(c *config.Config) any { return c.Address }},
	{"window", func(c *config.Config) any { return c.Window }},
	{"receipts", func(c *config.Config) any { return c.Receipts }},
	{"zone", func(c *config.Config) any { return c.Zone }},
	{"firewall.closed", func(c *config.Config) any { return c.Firewall.Closed }},
	{"firewall.trusted_interfaces", func(c *config.Config) any { return c.Firewall.TrustedInterfaces }},
	{"firewall.tproxy", func(c *config.Config) any { return c.Firewall.TPROXY }},
	{"fleet.max_age", func(c *config.Config) any { return c.Fleet.MaxAge }},
	{"fleet.standalone", func(c *config.Config) any { return c.Fleet.Standalone }},
	{"limits.live_nonces", func(c *config.Config) any { return c.Limits.LiveNonces }},
	{"limits.grants", func(c *config.Config) any { return c.Limits.Grants }},
	{"limits.grants_per_hour", func(c *config.Config) any { return c.Limits.GrantsPerHour }},
}

// NeedRestart returns the settings that differ and that a running server cannot change, so that it needs a restart.
func NeedRestart(was, is *config.Config) []string { return changed(restartSettings, was, is) }

// changed returns the keys of the settings that differ.
func changed(settings []setting, was, is *config.Config) []string {
	keys := []string{}
	for _, s := range settings {
		if !reflect.DeepEqual(s.value(was), s.value(is)) {
			keys = append(keys, s.key)
		}
	}
	return keys
}

// changedServices returns the services that differ, as keys of server.toml.
func changedServices(was, is *config.Config) []string {
	var keys []string
	for _, service := range is.Services {
		before, ok := was.Service(service.Name)
		switch {
		case !ok:
			keys = append(keys, "service."+service.Name+" (new)")
		case !reflect.DeepEqual(before, service):
			keys = append(keys, "service."+service.Name)
		}
	}
	for _, service := range was.Services {
		if _, ok := is.Service(service.Name); !ok {
			keys = append(keys, "service."+service.Name+" (gone)")
		}
	}
	return keys
}

// tell adds a change to an answer.
func tell(r *control.Reloaded, c keys.Change) {
	switch {
	case c.Before == nil:
		r.Added = append(r.Added, c.After.Name)
	case c.After == nil:
		r.Removed = append(r.Removed, c.Before.Name)
	default:
		r.Changed = append(r.Changed, c.Before.Name)
	}
}
