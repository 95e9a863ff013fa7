package config

import (
	"strings"
	"testing"
)

// TestFleetRefuses: the settings of a fleet are whole, or there are none.
func TestFleetRefuses(t *testing.T) {
	const id, office = "id = '" + fleetID + "'\n", "office = '" + officeKey + "'\n"
	for add, want := range map[string]string{
		id:                       "fleet: needs both id and office",
		office:                   "fleet: needs both id and office",
		"local_clients = true":   "fleet: needs both id and office",
		"id = '6a09'\n" + office: "fleet.id: ",
		id + "office = 'AAEC'":   "fleet.office: should be the public key of the office",
		id + "office = '" + "A" + "AECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9='": "fleet.office: ",
		id + office + "gateway = 'Web 7'":                                        "fleet.gateway: ",
		id + office + "bundle = ''":                                              "fleet.bundle: should be a path",
		id + office + "max_age = '7d'":                                           "fleet.max_age: ",
		id + office + "standalone = 'alone'":                                     "fleet.standalone: should be ",
		id + office + "share = '/" + strings.Repeat("a", 107) + "'":              "fleet.share: is too long",
	} {
		if _, err := loadText(t, least+"[fleet]\n"+add+"\n"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", add, err, want)
		}
	}
	c, err := loadText(t, least+"[fleet]\n"+id+office)
	if err != nil || !c.Fleet.On() || c.FleetName() != c.Name || c.Fleet.LocalClients || c.Fleet.MaxAge != defaultMaxAge {
		t.Errorf("the least that there can be: got %+v, %v", c, err)
	}
	if c, err = loadText(t, least+"[fleet]\n"); err != nil || c.Fleet != (Fleet{}) {
		t.Errorf("an empty table: got %+v, %v", c, err)
	}
}
