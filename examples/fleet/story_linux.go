package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/examples/internal/stage"
)

const domain = "example.net"

func (f *fleet) introduce() {
	f.Heading("A fleet: many gateways, one office, one token for each client")
	f.Say(`Machines on one network, made of namespaces that are removed at the end:
  web, db, mail, backup  192.0.2.1 to .4  gateways, with a service on tcp/22 (it echoes, in place of ssh)
  alice, bob             192.0.2.5, .6    will be given tokens
  stranger               192.0.2.7        has none, and becomes a thief
  office                                  a directory; here it needs no network
The office publishes into a directory. Any tool may carry the bundles from there: rsync, git, a web server, etcd.`)
}

func (f *fleet) steps() []stage.Step {
	return []stage.Step{
		{Title: "An office, and three gateways that join it", Do: f.found},
		{Title: "Tokens for alice and bob, and the first bundles", Do: f.enrol},
		{Title: "The gateways start, and are dark", Do: f.guard},
		{Title: "Alice's one token opens each gateway; bob's opens web only", Do: f.use},
		{Title: "A fourth gateway: alice's token opens it as it is", Do: f.grow},
		{Title: "Bob is revoked, and shut out at once", Do: f.revoke},
		{Title: "An older bundle is put back, and refused", Do: f.rollBack},
		{Title: "A thief has the files of web: they open nothing at db", Do: f.steal},
		{Title: "Office and bundles are gone: a gateway that restarts has what it kept", Do: f.lose},
	}
}

func (f *fleet) found(ctx context.Context) error {
	out, err := f.manage(ctx, "init", "--name", "prod", "--domain", domain, "--service", "ssh=tcp/22", "--admin",
		"anna")
	f.Output(out)
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(f.Dir, "bundles"), 0o755); err != nil {
		return err
	}
	for _, gateway := range []string{"web", "db", "mail"} {
		if err := f.join(ctx, gateway); err != nil {
			return err
		}
	}
	return nil
}

func (f *fleet) join(ctx context.Context, gateway string) error {
	return f.Join(ctx, f.office, f.gateways[gateway], address(gateway))
}

func (f *fleet) enrol(ctx context.Context) error {
	if err := f.newClient(ctx, f.alice, "--allow", "ssh"); err != nil {
		return err
	}
	if err := f.newClient(ctx, f.bob, "--allow", "ssh", "--on", "web"); err != nil {
		return err
	}
	return f.publish(ctx)
}

// newClient makes a client, and imports its token on its host.
func (f *fleet) newClient(ctx context.Context, who *stage.Host, terms ...string) error {
	file := who.Name() + ".token"
	out, err := f.manage(ctx, slices.Concat([]string{"client", "new", who.Name()}, terms, []string{"--out", file})...)
	f.Output(out)
	if err != nil {
		return err
	}
	return f.run(ctx, who, "$", "spa-client", "import", file, "--config", who.Name())
}

func (f *fleet) guard(ctx context.Context) error {
	if err := f.meets(f.stranger, stage.Open, "db"); err != nil {
		return err
	}
	for _, gateway := range []string{"web", "db", "mail"} {
		if err := f.start(ctx, gateway); err != nil {
			return err
		}
	}
	return f.BothMeet(f.alice, stage.Dark, f.stranger, stage.Dark, f.door("db"))
}

func (f *fleet) start(ctx context.Context, gateway string) (err error) {
	f.servers[gateway], err = f.Start(ctx, f.gateways[gateway], gateway)
	return err
}

func (f *fleet) use(ctx context.Context) error {
	for _, gateway := range []string{"web", "db", "mail"} {
		if err := f.opens(ctx, f.alice, gateway); err != nil {
			return err
		}
	}
	if err := f.opens(ctx, f.bob, "web"); err != nil {
		return err
	}
	f.Say("The bundle of db does not have bob: to db, his knock is noise.")
	if err := f.silence(ctx, f.bob, "db"); err != nil {
		return err
	}
	return f.meets(f.stranger, stage.Dark, "web")
}

func (f *fleet) grow(ctx context.Context) error {
	if err := f.join(ctx, "backup"); err != nil {
		return err
	}
	if err := f.publish(ctx); err != nil {
		return err
	}
	if err := f.start(ctx, "backup"); err != nil {
		return err
	}
	if err := f.meets(f.alice, stage.Dark, "backup"); err != nil {
		return err
	}
	return f.opens(ctx, f.alice, "backup")
}

func (f *fleet) revoke(ctx context.Context) error {
	if err := f.meets(f.bob, stage.Open, "web"); err != nil {
		return err
	}
	f.Say("For a later step, an attacker keeps the bundle of web that is in force now.")
	if err := os.Link(f.bundle("web"), f.old()); err != nil {
		return err
	}
	out, err := f.manage(ctx, "client", "revoke", "bob", "--yes")
	f.Output(out)
	if err != nil {
		return err
	}
	if err := f.publish(ctx); err != nil {
		return err
	}
	if err := f.BothMeet(f.bob, stage.Dark, f.alice, stage.Open, f.door("web")); err != nil {
		return err
	}
	return f.silence(ctx, f.bob, "web")
}

// old returns the path of the attacker's copy of a bundle.
func (f *fleet) old() string { return filepath.Join(f.Dir, "old.bundle") }

func (f *fleet) rollBack(ctx context.Context) error {
	f.Say("The old bundle would let bob in again. Its signature is good.")
	f.Prompt("web#", "cp old.bundle web/fleet.bundle")
	if err := f.bring(f.old(), "web"); err != nil {
		return err
	}
	if err := f.servers["web"].HasSaid(ctx, "bundle of the fleet refused"); err != nil {
		return err
	}
	out, err := f.Command(ctx, f.gateways["web"], "#", "", "spa-server", "status", "--config", "web")
	if err != nil {
		return err
	}
	said := stage.Lines(out, "fleet")
	f.Output(said)
	if !strings.Contains(said, "REFUSED") {
		return errors.New("spa-server status does not say that a bundle was refused")
	}
	if err := f.silence(ctx, f.bob, "web"); err != nil {
		return err
	}
	f.Say("The next publish brings web a good one.")
	return f.publish(ctx)
}

func (f *fleet) lose(ctx context.Context) error {
	f.Prompt("office$", "rm -r office bundles")
	f.Prompt("db#", "rm db/fleet.bundle; kill %1")
	for _, path := range []string{filepath.Join(f.Dir, "office"), filepath.Join(f.Dir, "bundles"), f.bundle("db")} {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	if err := f.servers["db"].Stop(ctx); err != nil {
		return err
	}
	if err := f.start(ctx, "db"); err != nil {
		return err
	}
	if err := f.meets(f.stranger, stage.Dark, "db"); err != nil {
		return err
	}
	return f.opens(ctx, f.alice, "db")
}
