package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestFleetFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "prod.toml")
	for name, change := range map[string]func(*Profile){
		"listed":      func(*Profile) {},
		"none listed": func(p *Profile) { p.Gateways = map[string]string{} },
		"no domain":   func(p *Profile) { p.Address, p.Gateways = "", map[string]string{"7": "192.0.2.7"} },
		"no services": func(p *Profile) { p.Services, p.Source, p.Receipts = map[string][]string{}, "observed", false },
		"the longest": lengthen,
	} {
		p := fleetProfile()
		change(p)
		lab.Must(t, WriteProfile(dir, p, true))
		back, err := ReadProfile(path)
		if err != nil || !sameProfile(back, p) {
			t.Errorf("%s: got %v, %v", name, back, err)
			continue
		}
		if read, err := ParseToken(p.Token()); err != nil || !sameProfile(read, p) {
			t.Errorf("%s: the token says something else: %v", name, err)
		}
		locked := cheaply(t, p)
		lab.Must(t, WriteStored(dir, locked, true))
		text := lab.Value(os.ReadFile(path))(t)
		if strings.Contains(string(text), p.Key.Reveal()) || strings.Contains(string(text), p.Gate.Reveal()) {
			t.Errorf("%s: a locked file has a key", name)
		}
		stored := lab.Value(ReadStored(path))(t)
		if q, err := stored.Unlock(passphrase); err != nil || !sameProfile(q, p) {
			t.Errorf("%s: unlocked: %v", name, err)
		}
	}
}

// lengthen gives a profile all that it may have.
func lengthen(p *Profile) {
	long := strings.Repeat("a.", 124) + "aa"
	p.Source, p.Services, p.Gateways = "stun:"+long, map[string][]string{}, map[string]string{}
	for i := range MaxServices {
		name := fmt.Sprintf("%032d", i)
		for j := range MaxServicePorts {
			p.Services[name] = append(p.Services[name], fmt.Sprintf("tcp/%d-%d", 10000+j, 20000))
		}
	}
	for i := range MaxGateways {
		p.Gateways[fmt.Sprintf("%032d", i)] = long
	}
}

// TestFleetFileMixed: a file is that of a host or that of a fleet, and says what does not fit.
func TestFleetFileMixed(t *testing.T) {
	dir := t.TempDir()
	fleet := string(fleetProfile().text())
	host := testProfile()
	host.Name = "prod"
	for _, c := range []struct{ good, from, to, want string }{
		{fleet, "knock_ports", "address = \"gw.example.net\"\nknock_ports", ":5: address: is not for a fleet"},
		{fleet, "knock_ports", "server_id = \"00\"\nknock_ports", ":5: server_id: is not for a fleet"},
		{fleet, "knock_ports", "id = \"0000000000000001\"\nknock_ports", ":5: id: is not for a fleet"},
		{fleet, "knock_ports", "recovery = true\nknock_ports", ":5: recovery: is not for a fleet"},
		{fleet, "fleet_id", "server_id", ":4: domain: is only for a fleet, which has a fleet_id"},
		{fleet, "fleet_id = \"", "fleet_id = \"0", ":6: fleet_id: a fleet id is 32 hex digits, this has 33"},
		{fleet, `domain = "example.net"`, `domain = "example.net:22"`, ":4: domain: a domain is a name without a port"},
		{fleet, `domain = "example.net"`, ``, ":16: gateways: web7 has no address, and the fleet no domain"},
		{fleet, `web7 = ""`, `web_7 = ""`, ":16: gateways: a name may contain"},
		{fleet, "\ngate_key = ", "\n#", ": gate_key: missing"},
		{fleet, "\nkey = \"", "\nkey = \"A", ":9: key: a key is 32 bytes"},
		{fleet, "[gateways]", "[gateway]", `:16: gateway: unknown key (did you mean "gateways"?)`},
		{string(host.text()), "[services]", "[gateways]\n[services]", ":14: gateways: is only for a fleet"},
		{string(host.text()), "server_id", "#", ": server_id: missing"},
	} {
		path := filepath.Join(dir, "prod.toml")
		text := strings.Replace(c.good, c.from, c.to, 1)
		lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
		back, err := ReadProfile(path)
		if text == c.good || back != nil || err == nil || !strings.Contains(err.Error(), path+c.want) {
			t.Errorf("%q: got %v, want %s", c.to, err, c.want)
		}
	}
}

// TestFleetLockBinds: an attacker who can write a locked file cannot send its knocks elsewhere.
func TestFleetLockBinds(t *testing.T) {
	good := cheaply(t, fleetProfile())
	for name, change := range map[string]func(*StoredProfile){
		"domain":       func(s *StoredProfile) { s.Address = "evil.example.org" },
		"no domain":    func(s *StoredProfile) { s.Address, s.Gateways = "", map[string]string{"db1": s.Gateways["db1"]} },
		"fleet id":     func(s *StoredProfile) { s.Fleet[0] ^= 1 },
		"address":      func(s *StoredProfile) { s.Gateways = map[string]string{"web7": "", "db1": "198.51.100.8"} },
		"another name": func(s *StoredProfile) { s.Gateways = map[string]string{"web8": "", "db1": s.Gateways["db1"]} },
		"more gateways": func(s *StoredProfile) {
			s.Gateways = map[string]string{"web7": "", "db1": s.Gateways["db1"], "x": ""}
		},
		"no gateways": func(s *StoredProfile) { s.Gateways = map[string]string{} },
		"a host": func(s *StoredProfile) {
			s.ServerID, s.Fleet, s.Gateways = ServerID(s.Fleet), FleetID{}, nil
		},
	} {
		s := *good
		if _, err := s.Unlock(passphrase); err != nil {
			t.Fatal(err)
		}
		change(&s)
		if _, err := s.Unlock(passphrase); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s: got %v, want ErrPassphrase", name, err)
		}
	}
}

// TestGatewayInDomain: ssh hands over names as they were typed.
func TestGatewayInDomain(t *testing.T) {
	p := fleetProfile()
	for name, want := range map[string]string{"web7": "prod/web7", "web7.example.net": "prod/web7",
		"WEB7.Example.Net": "prod/web7", "WEB7": "", "web7.example.org": "", "a.web7.example.net": "",
		".example.net": "", "example.net": "", "": "", "web7.example.net.": "", "-.example.net": ""} {
		for _, domain := range []string{"example.net", "example.net."} {
			p.Address = domain
			g, err := p.Gateway(name)
			if err == nil && (g.Name != want || g.ServerID != p.Fleet.Server("web7")) || (err == nil) != (want != "") {
				t.Errorf("%q in %s: got %v, %v, want %q", name, domain, g, err, want)
			}
		}
	}
	p.Address = strings.Repeat("a.", 119) + "aa" // with the longest name it has 273 characters
	if g, err := p.Gateway(strings.Repeat("x", 32)); err == nil {
		t.Errorf("an address that is too long: %s", g.Address)
	}
	p.Address = ""
	if _, err := p.Gateway("new"); !errors.Is(err, ErrGateway) {
		t.Errorf("without a domain: %v", err)
	}
}
