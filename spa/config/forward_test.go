package config

import (
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestForwardRefuses: a port that leads elsewhere has one meaning, and settings that would have no effect are errors.
func TestForwardRefuses(t *testing.T) {
	const led = "[service.a]\nports=['tcp/2222']\nforward="
	for _, test := range [][2]string{
		{led + "''", ":7: service.a.forward: should be"},
		{led + "':0'", ":7: service.a.forward: should be"},
		{led + "':022'", ":7: service.a.forward: should be"},
		{led + "':65536'", ":7: service.a.forward: should be"},
		{led + "'198.51.100.5'", ":7: service.a.forward: should be"},
		{led + "'gw:22'", ":7: service.a.forward: should be"},
		{led + "'0.0.0.0:22'", ":7: service.a.forward: should be"},
		{led + "'224.0.0.1:22'", ":7: service.a.forward: should be"},
		{led + "'[::ffff:192.0.2.1]:22'", ":7: service.a.forward: should be"},
		{led + "22", ":7: service.a.forward: should be"},
		{led + "{ to = ':22' }", ":7: service.a.forward: should be"},
		{led + "[]", ":7: service.a.forward: should be"},
		{led + "['198.51.100.5:22', '192.0.2.9:22']", ":7: service.a.forward: should be"},
		{led + "['198.51.100.5:22', ':22']", ":7: service.a.forward: should be"},
		{led + "[':22', '[2001:db8::5]:22']", ":7: service.a.forward: should be"},
		{led + "'127.0.0.1:22'", `write forward = ":22"`},
		{led + "'[fe80::1]:22'", ":7: service.a.forward: is link-local"},
		{led + "':2222'", ":7: service.a.forward: leads to one of its own ports"},
		{led + "':22'\nmasquerade=true", ":8: service.a.masquerade: has an effect only"},
		{"[service.a]\nports=['tcp/1']\nmasquerade=false", ":7: service.a.masquerade: has an effect only"},
		{led + "':22'\naddresses=['198.51.100.5']", ":7: service.a.forward: cannot be combined with addresses"},
		{"[service.a]\nports=['tcp/1-2']\nforward=':22'", ":7: service.a.forward: ports contains a range"},
		{"[service.a]\nrun=['/b']\nuser='u'\nforward=':22'", ":8: service.a.forward: has no effect"},
		{led + "':22'\n[service.b]\nports=['tcp/22']", ":7: service.a.forward: service b guards the port"},
		{led + "':22'\n[service.b]\nports=['tcp/2000-3000']", ":6: service.a.ports: service b has"},
		{"[service.a]\nports=['udp/53']\nforward=':62201'", ":7: service.a.forward: udp/62201 is a knock"},
		{"[service.a]\nports=['tcp/1']\nforward=':2'\n[service.b]\nports=['tcp/2']\nforward=':3'",
			":7: service.a.forward: service b"},
		{"[firewall]\nmode='admit'\n[firewall.admit]\ntable='inet f'\nset4='s'\n" + led + "':22'",
			"service.a.forward: needs"},
	} {
		text, want := test[0], test[1]
		if c, err := loadText(t, least+text); err == nil || c != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		}
	}
}

// TestForwardOneMistake: a wrong forward is one error, and not one of masquerade too.
func TestForwardOneMistake(t *testing.T) {
	_, err := loadText(t, least+"[service.a]\nports=['tcp/2222']\nforward='198.51.100.5'\nmasquerade=true")
	if err == nil || strings.Contains(err.Error(), "masquerade") {
		t.Errorf("got %v, want an error of forward only", err)
	}
}

// TestForwardIsNamed: a forwarded port cannot be allowed by its number.
func TestForwardIsNamed(t *testing.T) {
	c := lab.Value(loadText(t, least+"[service.a]\nports=['tcp/2222']\nforward=':22'"))(t)
	lab.Must(t, c.CheckAllow("a"))
	err := c.CheckAllow("tcp/2222")
	if err == nil || !strings.Contains(err.Error(), "is forwarded: allow that by its name") {
		t.Errorf("got %v", err)
	}
}
