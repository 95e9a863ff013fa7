package main

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet"
	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

// office is the office of a fleet that has this gateway.
type office struct {
	*gateway
	seal    fleet.Seal
	gate    keys.GateKey
	request fleet.Request
	name    string // of the gateway in the fleet
	site    string // with which it shares its address; empty: with none
	path    string // in which it looks for bundles
}

// joinFleet lets a gateway join a fleet as an administrator does, with these settings too.
func (g *gateway) joinFleet(more ...string) *office {
	g.t.Helper()
	_, private, err := ed25519.GenerateKey(nil)
	lab.Must(g.t, err)
	return g.joinOffice(fleet.Seal{Fleet: keys.NewFleetID(), Key: private}, keys.NewGateKey(), more...)
}

// joinOffice is joinFleet for a fleet that there is.
func (g *gateway) joinOffice(seal fleet.Seal, gate keys.GateKey, more ...string) *office {
	g.t.Helper()
	o := &office{gateway: g, seal: seal, gate: gate, name: "gw", path: filepath.Join(g.dir, "fleet.bundle")}
	public := seal.Key.Public().(ed25519.PublicKey)
	line := g.must("spa-server", "init", "--fleet", "--config", g.dir)
	o.request = lab.Value(fleet.ParseRequest(line))(g.t)
	g.must("spa-server", append([]string{"set", "--config", g.dir, "fleet.id=" + o.seal.Fleet.String(),
		"fleet.office=" + base64.StdEncoding.EncodeToString(public)}, more...)...)
	return o
}

// publish offers a bundle with these clients, as a program does that moves whole files.
func (o *office) publish(serial int64, issued time.Time, clients ...*keys.Client) {
	o.t.Helper()
	tmp := o.path + ".tmp"
	lab.Must(o.t, errors.Join(os.WriteFile(tmp, o.bundle(serial, issued, clients...), 0o644), os.Rename(tmp, o.path)))
}

func (o *office) bundle(serial int64, issued time.Time, clients ...*keys.Client) []byte {
	o.t.Helper()
	site := cmp.Or(o.site, o.name)
	server := o.seal.Fleet.Server(site)
	c := &fleet.Contents{Site: site, Gates: keys.Gates{Current: o.gate}.At(server)}
	if o.site != "" {
		c.Share = share.DeriveKey(o.seal.Key.Seed(), server)
	}
	for _, client := range clients {
		at := *client
		at.Key, at.ID = client.Key.At(server), client.Key.IDAt(server)
		c.Clients = append(c.Clients, &at)
	}
	return lab.Value(o.seal.Seal(o.name, o.request.Recipient, serial, issued, c))(o.t).Bytes()
}

// inForce waits until a bundle is in force.
func (o *office) inForce(serial int64) {
	o.t.Helper()
	lab.Eventually(o.t, "the bundle to be in force", func() bool { return o.status().Fleet.Serial == serial })
}

// sender is what a client knocks with at this gateway: it has one key for the fleet.
func (o *office) sender(c *keys.Client) spa.Sender {
	o.t.Helper()
	site := cmp.Or(o.site, o.name)
	p := &keys.Profile{Name: "prod", Fleet: o.seal.Fleet, Gateways: map[string]string{site: "192.0.2.1"}, Gate: o.gate,
		Client: c.Name, Key: c.Key, KnockPorts: []uint16{62201}, Receipts: true}
	return sender(lab.Value(p.Gateway(site))(o.t))
}

// knocks reports whether a client of the fleet is answered that ssh is open.
func (o *office) knocks(c *keys.Client, want bool) {
	o.t.Helper()
	by := o.sender(c)
	r := o.exchange("192.0.2.2", o.gateway.seal(request(), by), by, wait(want))
	if got := r != nil && r.Status == spa.Granted; got != want {
		o.t.Errorf("%s is let in: %v, want %v\nserver:\n%s", c.Name, got, want, o.server.log())
	}
}

func fleetClient(name string, allow ...string) *keys.Client {
	return &keys.Client{Name: name, Key: keys.NewKey(), Allow: allow}
}

// TestFleet: clients of the bundle that the office has published can knock, after kill -9 too, and no others. One that
// is not in the next bundle loses its grants at once, and the sessions of a service with on_expiry = "cut".
func TestFleet(t *testing.T) {
	g := newGateway(t)
	g.set("service.web", "on_expiry", `"cut"`)
	o := g.joinFleet()
	g.serve(":22")
	g.serve(":80")
	g.start()
	ann, bob := fleetClient("ann", "ssh", "web"), fleetClient("bob", "ssh")
	o.knocks(ann, false)
	if !strings.Contains(g.server.log(), "no bundle of the fleet can be used") {
		t.Errorf("the log does not say that there is no bundle:\n%s", g.server.log())
	}
	o.publish(1, time.Now(), ann, bob)
	o.inForce(1)
	o.knocks(bob, true)
	lab.Must(t, os.Remove(o.path))
	g.server.stop(syscall.SIGKILL)
	g.start()
	o.inForce(1)

	r := request()
	r.For, r.Services = 5*time.Minute, []service.Service{{Name: "ssh"}, {Name: "web"}}
	by := o.sender(ann)
	g.wantReceipt("192.0.2.2", g.seal(r, by), by, spa.Granted)
	kept := lab.Value(g.session("192.0.2.2", "192.0.2.1:22", lab.Patience))(t)
	cut := lab.Value(g.session("192.0.2.2", "192.0.2.1:80", lab.Patience))(t)
	late := g.seal(request(), by)
	o.publish(2, time.Now(), bob)
	o.inForce(2)
	for _, grant := range g.grants() {
		if grant.Client == "ann" {
			t.Errorf("a grant of a client that left the fleet is live: %+v", grant)
		}
	}
	if lab.Echoes(cut, "after it", silence) == nil || lab.Echoes(kept, "after it", lab.Patience) != nil {
		t.Error("the sessions did not end or stay as on_expiry says")
	}
	if g.exchange("192.0.2.2", late, by, silence) != nil {
		t.Error("a packet from before is answered")
	}
	o.knocks(ann, false)
	o.knocks(bob, true)
	if out, _ := g.run(g.host, "spa-server", "revoke", "bob", "--config", g.dir); !strings.Contains(out,
		"spa-fleet client revoke bob") {
		t.Errorf("revoke prints\n%s", out)
	}
	out, code := g.run(g.host, "spa-server", "status", "--config", g.dir)
	if code != 0 || !strings.Contains(out, "gw by bundle 2, issued at ") {
		t.Errorf("status: %d\n%s", code, out)
	}
}

// TestFleetRefused: what the server cannot read or must not take changes nothing, and status reports it.
func TestFleetRefused(t *testing.T) {
	g := newGateway(t)
	o := g.joinFleet()
	g.start()
	ann := fleetClient("ann", "ssh")
	o.publish(5, time.Now(), ann)
	o.inForce(5)
	old, next := o.bundle(4, time.Now(), fleetClient("eve", "ssh")), o.bundle(6, time.Now(), ann)
	for reason, put := range map[string]func() error{
		"older": func() error { return os.WriteFile(o.path, old, 0o644) },
		"unreadable": func() error {
			return errors.Join(os.WriteFile(o.path+".tmp", next, 0o600), os.Rename(o.path+".tmp", o.path))
		},
		"format": func() error { return os.WriteFile(o.path, next[:len(next)-1], 0o644) },
	} {
		lab.Must(t, os.RemoveAll(o.path))
		lab.Must(t, put())
		lab.Eventually(t, "the file to be refused: "+reason, func() bool {
			return g.status().Fleet.Refused[reason] == 1
		})
		if st := g.status().Fleet; st.Serial != 5 || st.LastRefused.Reason != reason {
			t.Errorf("%s: got %+v", reason, st)
		}
	}
	out, _ := g.run(g.host, "spa-server", "status", "--config", g.dir)
	if !strings.Contains(out, "refused since the start: 1 format, 1 older, 1 unreadable") {
		t.Errorf("status has\n%s", out)
	}
	o.knocks(ann, true)
	o.publish(6, time.Now(), ann)
	o.inForce(6)
}

// TestFleetSettings: what each setting of a fleet does.
func TestFleetSettings(t *testing.T) {
	g := newGateway(t)
	away := t.TempDir()
	g.give(away)
	o := g.joinFleet("fleet.gateway=web7", "fleet.bundle="+filepath.Join(away, "a bundle"), "fleet.local_clients=true",
		"fleet.max_age=1h", "fleet.share="+filepath.Join(away, "agent.sock"), "fleet.taken="+filepath.Join(away, "taken"))
	o.name, o.path = "web7", filepath.Join(away, "a bundle")
	again := g.must("spa-server", "init", "--fleet", "--config", g.dir)
	if r := lab.Value(fleet.ParseRequest(again))(t); r.Name != "web7" ||
		r.Recipient.String() != o.request.Recipient.String() {
		t.Errorf("init prints another line: %s", again)
	}
	g.serve(":22")
	g.start()
	if info, err := os.Stat(filepath.Join(away, "agent.sock")); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket for the agent: %v, %v", info, err)
	}
	ann := fleetClient("ann", "ssh")
	o.publish(1, time.Now().Add(-2*time.Hour), ann)
	o.inForce(1)
	said := lab.Value(fleet.ParseTaken(lab.Value(os.ReadFile(filepath.Join(away, "taken")))(t)))(t)
	if said.Gateway != "web7" || said.Serial != 1 {
		t.Errorf("it reports %s", said)
	}
	o.knocks(ann, true)
	alice := sender(g.profile())
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	lab.Eventually(t, "the log to say that the bundle is old", func() bool {
		return strings.Contains(g.server.log(), "the bundle of the fleet is old")
	})
	if st := g.status().Fleet; !st.Old || len(st.Shadowed) != 0 || st.Gateway != "web7" {
		t.Errorf("got %+v", st)
	}
	g.must("spa-server", "set", "--config", g.dir, "fleet.max_age=3h")
	g.must("spa-server", "reload", "--config", g.dir)
	if g.status().Fleet.Old {
		t.Error("reload does not take max_age")
	}
	g.must("spa-server", "set", "--config", g.dir, "fleet.local_clients=false")
	if out, code := g.run(g.host, "spa-server", "reload", "--config", g.dir); code == 0 ||
		!strings.Contains(out, "a restart is needed for fleet.local_clients") {
		t.Errorf("reload: %d\n%s", code, out)
	}
	g.server.stop(syscall.SIGTERM)
	g.start()
	if r := g.exchange("192.0.2.2", g.seal(request(), alice), alice, silence); r != nil {
		t.Errorf("a client file counts, although local_clients = false: %v", r.Status)
	}
	if got := g.status().Fleet.Shadowed; len(got) != 1 || got[0] != "alice" {
		t.Errorf("the files that do not count: %v", got)
	}
}

// TestFleetAtBoot: the guard that is loaded at boot leaves the grants of the fleet's clients alone.
func TestFleetAtBoot(t *testing.T) {
	g := newGateway(t)
	o := g.joinFleet()
	g.start()
	ann := fleetClient("ann", "ssh")
	o.publish(1, time.Now(), ann)
	o.inForce(1)
	o.knocks(ann, true)
	g.server.stop(syscall.SIGKILL)
	lab.Must(t, os.Remove(o.path))
	if out, code := g.run(g.host, "spa-server", "guard", "--config", g.dir); code != 0 {
		t.Fatalf("guard: %d\n%s", code, out)
	}
	g.start()
	if held := g.grants(); len(held) != 1 || held[0].Client != "ann" {
		t.Errorf("grants: %+v", held)
	}
}

// TestFleetRekeyedLate: a bundle with another key for a client arrives while no server runs, long after the office has
// made that key. Grants that the client has until then may be those of a thief, and end at the start. So they do if the
// server was killed while it took the bundle over.
func TestFleetRekeyedLate(t *testing.T) {
	again := func(o *office, was *keys.Client) *keys.Client { return fleetClient(was.Name, "ssh") }
	rotated := func(o *office, was *keys.Client) *keys.Client {
		is, at := again(o, was), o.seal.Fleet.Server(o.name)
		is.Previous = &keys.Previous{ID: was.Key.IDAt(at), Key: was.Key.At(at), Until: time.Now().Add(-100 * time.Hour)}
		return is
	}
	for name, replace := range map[string]func(*office, *keys.Client) *keys.Client{
		"rotated": rotated, "made again": again,
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", name, killed), func(t *testing.T) {
				g := newGateway(t)
				o := g.joinFleet()
				g.start()
				ann, bob := fleetClient("ann", "ssh"), fleetClient("bob", "ssh")
				o.publish(1, time.Now(), ann, bob)
				o.inForce(1)
				o.knocks(ann, true)
				o.knocks(bob, true)
				g.server.stop(syscall.SIGKILL)
				o.publish(2, time.Now(), replace(o, ann), bob)
				if killed {
					o.keep()
				}
				g.start()
				o.inForce(2)
				if held := g.grants(); len(held) != 1 || held[0].Client != "bob" {
					t.Errorf("grants: %+v", held)
				}
				g.server.stop(syscall.SIGKILL)
				g.start()
				if held := g.grants(); len(held) != 1 || held[0].Client != "bob" {
					t.Errorf("after another start: %+v", held)
				}
			})
		}
	}
}

// keep does what the server does first with a bundle that is offered: it keeps it for the next start, beside the one
// before.
func (o *office) keep() {
	o.t.Helper()
	text, state := lab.Value(os.ReadFile(o.path))(o.t), lab.Value(config.Load(o.dir))(o.t).State
	for _, name := range []string{config.BundlesFile, config.BundlesFile2} {
		path := filepath.Join(state, name)
		if kept := lab.Value(os.ReadFile(path))(o.t); !bytes.Contains(kept, []byte("\nserial ")) {
			lab.Must(o.t, os.WriteFile(path, append(binary.BigEndian.AppendUint64(nil, uint64(len(text))), text...), 0o600))
			return
		}
	}
	o.t.Fatal("both files have a bundle")
}

// TestInitFleet: init --fleet makes a key that nobody else can read, with a new gateway or for one that there is, and
// prints only the line for the office on standard output.
func TestInitFleet(t *testing.T) {
	g := newGateway(t)
	before := lab.Value(os.ReadDir(g.dir))(t)
	line := g.must("spa-server", "init", "--fleet", "--config", g.dir)
	r := lab.Value(fleet.ParseRequest(line))(t)
	if r.Name != "gw" || r.Address != "192.0.2.1" || len(r.KnockPorts) != 1 || strings.Count(line, "\n") != 1 {
		t.Errorf("got %s", line)
	}
	if after := lab.Value(os.ReadDir(g.dir))(t); len(after) != len(before)+1 {
		t.Errorf("beside the key it has made other files: %v", after)
	}
	path := filepath.Join(g.dir, "fleet.key")
	info := lab.Value(os.Stat(path))(t)
	if info.Mode().Perm()&0o027 != 0 {
		t.Errorf("its mode is %v", info.Mode())
	}
	key := lab.Value(os.ReadFile(path))(t)
	other := filepath.Join(t.TempDir(), "etc")
	line = g.must("spa-server", "init", "--fleet", "--address", "gw.example.net", "--name", "web8", "--config", other)
	if r := lab.Value(fleet.ParseRequest(line))(t); r.Name != "web8" {
		t.Errorf("a new gateway: %s", line)
	}
	lab.Must(t, os.Chmod(path, 0o644))
	if out, code := g.run(g.host, "spa-server", "init", "--fleet", "--config", g.dir); code == 0 ||
		!strings.Contains(out, "chmod 640") || bytes.Contains([]byte(out), key) {
		t.Errorf("a key that others can read: %d\n%s", code, out)
	}
}
