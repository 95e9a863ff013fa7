package keys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

func testProfile() *Profile {
	return &Profile{
		Name: "gw", Address: "gw.example.net", KnockPorts: []uint16{62201, 443}, ServerID: NewServerID(), Gate: NewGateKey(),
		Client: "alice", ID: NewID(), Key: NewKey(),
		Services: map[string][]string{"ssh": {"tcp/22"}, "mosh": {"udp/60000-60010", "tcp/22"}},
		Receipts: true, Source: "observed",
	}
}

func sameProfile(a, b *Profile) bool {
	x, y := *a, *b
	same := x.Key.Equal(y.Key) && x.Gate.Equal(y.Gate)
	x.Key, y.Key, x.Gate, y.Gate = Key{}, Key{}, GateKey{}, GateKey{}
	return same && reflect.DeepEqual(x, y)
}

func TestProfileFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gw.toml")
	for _, change := range []func(*Profile){
		func(*Profile) {},
		func(p *Profile) { p.Source, p.Receipts = "", false },
		func(p *Profile) { p.Source, p.Address = "stun:stun.example.net:3478", "[2001:db8::1]:443" },
		func(p *Profile) { p.Source, p.Services = "2001:db8::7", map[string][]string{} },
	} {
		p := testProfile()
		change(p)
		lab.Must(t, WriteProfile(dir, p, true))
		back, err := ReadProfile(path)
		if err != nil || !sameProfile(back, p) {
			t.Fatalf("got %+v, %v, want %+v", back, err, p)
		}
		if err := WriteProfile(dir, p, false); !errors.Is(err, place.ErrExists) {
			t.Errorf("got %v, want ErrExists", err)
		}
		before, _ := os.ReadFile(path)
		lab.Must(t, WriteProfile(dir, back, true))
		if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
			t.Errorf("written back as\n%s", after)
		}
		if p.Source == "" && !strings.Contains(string(before), "\nsource = \"auto\"\n") {
			t.Errorf("auto is not said in\n%s", before)
		}
	}
}

func TestReadProfileRefuses(t *testing.T) {
	dir := t.TempDir()
	p := testProfile()
	p.Services = map[string][]string{"ssh": {"tcp/22"}}
	good := string(p.text())
	for change, want := range map[[2]string]string{
		{`name = "gw"`, `name = "other"`}:              ":3: name: differs from the file's name",
		{`name = "gw"`, ``}:                            ": name: missing",
		{`address = "gw.example.net"`, `address = ""`}: ":4: address: a host name has",
		{"62201, 443", ""}:                             ":5: knock_ports: must list 1 to",
		{"62201, 443", "62201, 62201"}:                 ":5: knock_ports: knock ports are",
		{"62201, 443", "65536"}:                        ":5: knock_ports: 65536 is not a port",
		{"62201, 443", "65537, 0"}:                     ":5: knock_ports: 0 is not a port",
		{`server_id = "`, `server_id = "0`}:            ":6: server_id: a server id is 32 hex digits, this has 33",
		{`gate_key = "`, `gate_key = "A`}:              ":7: gate_key: a key is 32 bytes",
		{`client = "alice"`, `client = "Alice"`}:       ":8: client: a name may contain",
		{"\nid = \"", "\nid = \"0"}:                    ":9: id: a client id",
		{"\nkey = \"", "\nkey = \"A"}:                  ":10: key: a key is 32 bytes",
		{"receipts = true\n", ""}:                      ": receipts: missing",
		{`source = "observed"`, `source = "me"`}:       ":12: source: a source is",
		{`source = "observed"`, `source = "stun:"`}:    ":12: source: a host name has",
		{`source = "observed"`, `source = "::0001"`}:   ":12: source: a source is",
		{"ssh = ", "SSH = "}:                           ":14: services: a name may contain",
		{`["tcp/22"]`, `[]`}:                           ":14: services: service ssh must have 1 to",
		{`["tcp/22"]`, `["tcp/22", "tcp/22"]`}:         ":14: services: service ssh lists a port twice",
		{`["tcp/22"]`, `["22"]`}:                       ":14: services: ports are written",
		{"[services]", "[service]"}:                    `:14: service: unknown key (did you mean "services"?)`,
	} {
		path := filepath.Join(dir, "gw.toml")
		text := strings.Replace(good, change[0], change[1], 1)
		lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
		back, err := ReadProfile(path)
		if text == good || err == nil || back != nil || !strings.Contains(err.Error(), path+want) {
			t.Errorf("%q: got %v, want %s", change, err, want)
		}
	}
	lab.Must(t, os.WriteFile(filepath.Join(dir, "GW.toml"), []byte(good), 0o600))
	if _, err := ReadProfile(filepath.Join(dir, "GW.toml")); err == nil || !strings.Contains(err.Error(), "NAME.toml") {
		t.Errorf("got %v", err)
	}
}

// badProfiles are profiles with one wrong field each.
var badProfiles = map[string]func(*Profile){
	"name":        func(p *Profile) { p.Name = "../gw" },
	"address":     func(p *Profile) { p.Address = "gw\"\nx = \"" },
	"knock_ports": func(p *Profile) { p.KnockPorts = make([]uint16, MaxKnockPorts+1) },
	"server_id":   func(p *Profile) { p.ServerID = ServerID{} },
	"gate_key":    func(p *Profile) { p.Gate = GateKey{} },
	"client":      func(p *Profile) { p.Client = "" },
	"id":          func(p *Profile) { p.ID = 0 },
	"key":         func(p *Profile) { p.Key = Key{} },
	"services":    func(p *Profile) { p.Services = map[string][]string{"a": make([]string, MaxServicePorts+1)} },
	"source":      func(p *Profile) { p.Source = "auto" }, // "" is the only way to write it
}

func TestValid(t *testing.T) {
	dir := t.TempDir()
	lab.Must(t, testProfile().Valid())
	for field, change := range badProfiles {
		p := testProfile()
		change(p)
		if err := p.Valid(); err == nil || !strings.Contains(err.Error(), "profile's "+field+":") {
			t.Errorf("%s: got %v", field, err)
		}
		if err := WriteProfile(dir, p, true); err == nil {
			t.Errorf("%s: written", field)
		}
		if got := p.Token(); got != "" {
			t.Errorf("%s: has a token", field)
		}
	}
	p := testProfile()
	p.Services = map[string][]string{}
	for i := range MaxServices + 1 {
		p.Services["s"+strings.Repeat("x", i%20)+string(rune('a'+i/20))] = []string{"tcp/22"}
	}
	if p.Valid() == nil {
		t.Error("too many services are valid")
	}
	lab.OnlyFiles(t, dir)
}

func TestGateFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gate.key")
	g := NewGateKey()
	lab.Must(t, WriteGate(path, g))
	gate, err := ReadGate(path)
	if err != nil || !gate.Current.Equal(g) || !gate.Previous.IsZero() {
		t.Fatalf("got %v, %v", gate, err)
	}
	if err := WriteGate(path, NewGateKey()); !errors.Is(err, place.ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if err := WriteGate(filepath.Join(dir, "none"), GateKey{}); err == nil {
		t.Error("no key was written")
	}
	first := "version = 1\nkey = \"" + g.Reveal() + "\"\n"
	read := func(text string) (Gates, error) {
		lab.Must(t, os.WriteFile(path, []byte(text), 0o600))
		return ReadGate(path)
	}
	for text, want := range map[string]string{
		"version = 1\n": ": key: missing",
		"version = 1\nkey = \"" + g.Reveal()[1:] + "\"\n": ":2: key: a key is 32 bytes in base64, 44 characters; this has 43",
		first + "kye = 1\n": `:3: kye: unknown key (did you mean "key"?)`,
	} {
		if gate, err := read(text); err == nil || !gate.Current.IsZero() || !strings.Contains(err.Error(), path+want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
