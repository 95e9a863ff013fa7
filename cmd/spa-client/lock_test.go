package main

import (
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// testMain is main, with a keyring in a directory if the script has one.
func testMain() {
	dir := os.Getenv("TEST_RING")
	if dir == "" {
		main()
		return
	}
	os.Exit(cli.Main("spa-client", (&app{ring: fileRing(dir)}).root()))
}

// fileRing is a keyring in a directory of files.
type fileRing string

func (r fileRing) Get(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(r), name))
	return string(b), err
}

func (r fileRing) Set(name, passphrase string) error {
	return os.WriteFile(filepath.Join(string(r), name), []byte(passphrase), 0o600)
}

func (r fileRing) Delete(name string) error { return os.Remove(filepath.Join(string(r), name)) }

// rotatedCommand is "rotated [CHANGE]...": it writes a token with a new key of the gateway's client to the file token.
// A change is another server, client, address or gate, or an additional service.
func rotatedCommand(ts *testscript.TestScript, neg bool, args []string) {
	g := gatewayOf(ts)
	p := *cmp.Or(g.fleet, g.profile)
	p.Key = keys.NewKey()
	if !p.IsFleet() {
		p.ID = keys.NewID()
	}
	for _, arg := range args {
		switch arg {
		case "server":
			p.ServerID = keys.NewServerID()
		case "client":
			p.Client = "bob"
		case "address":
			p.Address = "moved.example.net"
		case "gateways":
			p.Gateways = map[string]string{"web7": "127.0.0.1", "mail": ""}
		case "fleet":
			p.Fleet = keys.NewFleetID()
		case "gate":
			p.Gate = keys.NewGateKey()
		case "service":
			p.Services = map[string][]string{"ssh": {"tcp/2222"}, "imap": {"tcp/143"}}
		default:
			ts.Fatalf("rotated: no change %s", arg)
		}
	}
	at := &p
	if p.IsFleet() {
		_, name, _ := keys.SplitHost(g.profile.Name)
		var err error
		at, err = p.Gateway(name)
		ts.Check(err)
		g.fleet = &p
	}
	g.mu.Lock()
	g.client = &keys.Client{Name: p.Client, ID: at.ID, Key: at.Key}
	g.profile = at
	g.mu.Unlock()
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(p.Token()+"\n"), 0o600))
}

// holdsCommand is "[!] holds FILE": it checks whether a host's file contains the keys of the file token in clear.
func holdsCommand(ts *testscript.TestScript, neg bool, args []string) {
	p, err := keys.ParseToken(ts.ReadFile("token"))
	ts.Check(err)
	text := ts.ReadFile(args[0])
	secrets := []string{p.Key.Reveal(), p.Gate.Reveal()}
	if !p.IsFleet() {
		secrets = append(secrets, p.ID.String())
	}
	for _, secret := range secrets {
		if strings.Contains(text, secret) == neg {
			ts.Fatalf("%s holds a key: %v", args[0], !neg)
		}
	}
}

// TestLockInRingFails: if the keyring refuses the passphrase or the directory cannot be written, nothing changes.
func TestLockInRingFails(t *testing.T) {
	a := &app{config: t.TempDir(), ring: fileRing(filepath.Join(t.TempDir(), "none"))}
	cmd := a.lockCommand()
	cmd.SetContext(t.Context())
	p := &keys.StoredProfile{Profile: keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
		Client: "alice", ID: keys.NewID(), Key: keys.NewKey()}}
	var exit *cli.Exit
	if err := a.lockInRing(cmd, p); !errors.As(err, &exit) || !strings.Contains(exit.Hint, "nothing was changed") {
		t.Errorf("no keyring: got %v", err)
	}
	ring := t.TempDir()
	a.ring = fileRing(ring)
	if err := a.lockInRing(cmd, p); err == nil {
		t.Error("there is no directory of hosts, and it was locked")
	}
	if left, _ := os.ReadDir(ring); len(left) != 0 {
		t.Errorf("the keyring keeps %v", left)
	}
}
