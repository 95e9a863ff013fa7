package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/office"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"spa-fleet": func() { os.Exit(cli.Main("spa-fleet", newRoot())) }})
}

// TestScripts runs the commands as administrators do. Each has an identity, named by --identity.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"line": makeLine, "knows": checkKnows,
			"token": checkToken, "exitcode": checkExit, "forge": forgeVault, "shares": checkShares, "reports": report},
	})
}

// makeLine is "line NAME ADDRESS [PORTS]": it makes a gateway's identity, NAME.key, and its line, NAME.line.
func makeLine(ts *testscript.TestScript, neg bool, args []string) {
	id, err := age.GenerateHybridIdentity()
	ts.Check(err)
	r := fleet.Request{Name: args[0], Address: args[1], KnockPorts: []uint16{62201}, Recipient: id.Recipient()}
	if len(args) > 2 {
		port, err := strconv.ParseUint(args[2], 10, 16)
		ts.Check(err)
		r.KnockPorts = []uint16{uint16(port)}
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), []byte(id.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".line"), []byte(r.String()+"\n"), 0o600))
}

// checkKnows is "knows DIR GATEWAY SERIAL TOKEN...": the gateway takes its bundle in DIR, which has this serial, and
// lets exactly the clients with these tokens in, each with the key that the client would knock with. "TOKEN~" is a
// token of the key before.
func checkKnows(ts *testscript.TestScript, neg bool, args []string) {
	name := args[1]
	b, c := taken(ts, args[0], name)
	if got := strconv.FormatInt(b.Serial, 10); got != args[2] {
		ts.Fatalf("the serial is %s, want %s", got, args[2])
	}
	n := 0
	for _, file := range args[3:] {
		file, before := strings.CutSuffix(file, "~")
		p, err := keys.ParseToken(ts.ReadFile(file))
		ts.Check(err)
		at, err := p.Gateway(c.Site)
		ts.Check(err)
		found := false
		for _, client := range c.Clients {
			key, keyID := client.Key, client.ID
			if before && client.Previous != nil {
				key, keyID = client.Previous.Key, client.Previous.ID
			}
			if client.Revoked.IsZero() && client.Name == p.Client && key.Equal(at.Key) && keyID == at.ID &&
				c.Gates.Current.Equal(at.Gate) {
				found = true
			}
		}
		if !found {
			ts.Fatalf("%s does not let %s in", name, file)
		}
		if !before {
			n++
		}
	}
	good := slices.DeleteFunc(c.Clients, func(client *keys.Client) bool { return !client.Revoked.IsZero() })
	if n != len(good) {
		ts.Fatalf("%s has %d clients, want %d", name, len(good), n)
	}
}

// taken returns the bundle of a gateway in DIR, as the gateway takes it.
func taken(ts *testscript.TestScript, dir, name string) (*fleet.Bundle, *fleet.Contents) {
	o, err := office.Load(ts.MkAbs("office"))
	ts.Check(err)
	b, err := fleet.Parse([]byte(ts.ReadFile(dir + "/" + name + ".bundle")))
	ts.Check(err)
	ts.Check(fleet.Office{Fleet: o.Fleet, Key: o.Key}.Verify(b, name))
	id, err := age.ParseHybridIdentity(ts.ReadFile(name + ".key"))
	ts.Check(err)
	c, err := fleet.Open(b, id)
	ts.Check(err)
	return b, c
}

// checkShares is "shares DIR GATEWAY...": these gateways have one share key, and are of one site.
func checkShares(ts *testscript.TestScript, neg bool, args []string) {
	_, first := taken(ts, args[0], args[1])
	share := !first.Share.IsZero()
	for _, name := range args[2:] {
		_, c := taken(ts, args[0], name)
		share = share && c.Share.Equal(first.Share) && c.Site == first.Site
	}
	if share == neg {
		ts.Fatalf("%v share a key: %t", args[1:], share)
	}
}

// report is "reports DIR GATEWAY [forged | OTHER]": the gateway has taken over its bundle in DIR, and DIR gets what it
// says about that. Forged changes the time in it. OTHER passes it off as another gateway's.
func report(ts *testscript.TestScript, neg bool, args []string) {
	b, c := taken(ts, args[0], args[1])
	said, as := c.Taken.Sign(b.Head, time.Now()), args[1]
	if len(args) > 2 && args[2] == "forged" {
		said.Since = said.Since.Add(-time.Hour)
	} else if len(args) > 2 {
		as = args[2]
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+"/"+as+".taken"), []byte(said.String()+"\n"), 0o644))
}

// checkToken is "token FILE CLIENT SERVICES GATEWAY=ADDRESS...".
func checkToken(ts *testscript.TestScript, neg bool, args []string) {
	p, err := keys.ParseToken(ts.ReadFile(args[0]))
	ts.Check(err)
	if p.Client != args[1] || strings.Join(sorted(p.Services), ",") != args[2] || len(p.Gateways) != len(args)-3 {
		ts.Fatalf("the token says %s %v %v", p.Client, p.Services, p.Gateways)
	}
	for _, text := range args[3:] {
		name, address, _ := strings.Cut(text, "=")
		if at, err := p.Gateway(name); err != nil || at.Address != address {
			ts.Fatalf("the token says %v", p.Gateways)
		}
	}
}

// checkExit is "exitcode N COMMAND...": it runs a command and checks its exit code.
func checkExit(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := err.(interface{ ExitCode() int }); ok {
		code = strconv.Itoa(exit.ExitCode())
	}
	if code != args[0] {
		ts.Fatalf("exit %s (%v), want %s", code, err, args[0])
	}
}

// forgeVault is "forge OFFICE [in-office.toml [another-fleet]]": it does what anyone can who may write an office's
// files. The vault is now one of the attacker's for the same administrators, with the attacker's keys. Its key is in
// office.toml too, or passes for one that has replaced the key there.
func forgeVault(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.MkAbs(args[0])
	o, err := office.Load(dir)
	ts.Check(err)
	public, private, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	own, err := age.GenerateHybridIdentity()
	ts.Check(err)
	was := o.Fleet
	if len(args) > 2 {
		o.Fleet = keys.NewFleetID()
	}
	text := fmt.Sprintf("version = 1\nfleet = %q\nsigning = %q\nreplaced = [%q]\ngate = %q\nidentity = %q\nearlier = []\n"+
		"[admins]\n", o.Fleet, base64.StdEncoding.EncodeToString(private.Seed()), o.KeyText(),
		keys.NewGateKey().Reveal(), own)
	var to []age.Recipient
	for _, a := range o.Admins {
		to = append(to, a.Recipient)
		text += fmt.Sprintf("%s = %q\n", a.Name, a.Recipient)
	}
	var sealed bytes.Buffer
	armored := armor.NewWriter(&sealed)
	w, err := age.Encrypt(armored, to...)
	ts.Check(err)
	_, err = w.Write([]byte(text))
	ts.Check(errors.Join(err, w.Close(), armored.Close()))
	ts.Check(os.WriteFile(filepath.Join(dir, "vault.age"), sealed.Bytes(), 0o600))
	if len(args) > 1 {
		file := filepath.Join(dir, "office.toml")
		ts.Check(os.WriteFile(file, []byte(strings.NewReplacer(o.KeyText(), base64.StdEncoding.EncodeToString(public),
			was.String(), o.Fleet.String()).Replace(ts.ReadFile(file))), 0o600))
	}
}
