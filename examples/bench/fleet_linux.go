package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/spa/fleet/office"
	"sallyport/spa/lab"
)

// fleetSizes is how large a fleet is measured.
type fleetSizes struct{ gateways, clients, rounds int }

// mostGateways is how many gateways have room in 198.51.100.0/24.
const mostGateways = 127

// fleet is an office with many gateways. Each gateway has a host of its own, with a server and an agent, and a cable to
// the host of the office and etcd.
type fleet struct {
	*bench
	fleetSizes
	office   string // its directory
	identity string // of its administrator
	id       keys.FleetID
	hub      *network // both client and gateway are the host of the office
	members  []*member
	store    *store
	clients  []*keys.Profile // that are not revoked yet
	serial   int             // of the last publish
}

// member is a gateway.
type member struct {
	name, addr, dir string
	uid             uint32
	host            *lab.Host
	server          daemon
	agent           *daemon
}

// needFleet returns an error if no fleet can run here. Agents refuse to run as root, so they need another user.
func needFleet() error {
	if os.Geteuid() != 0 {
		return errors.New("-fleet must be run as root")
	}
	if _, err := exec.LookPath("etcd"); err != nil {
		return fmt.Errorf("%w\nhint: apt-get install etcd-server", err)
	}
	return nil
}

func runFleet(ctx context.Context, o options, log io.Writer) error {
	return inBench(ctx, o, log, func(b *bench) (err error) {
		f := &fleet{bench: b, fleetSizes: o.fleetSizes, office: b.fresh("office"), identity: b.fresh("identity")}
		defer func() { err = errors.Join(err, f.close()) }()
		for _, step := range []func() error{f.found, f.enrol, f.compare} {
			if err := step(); err != nil {
				return err
			}
		}
		return b.results.write(o.out, "fleet.md", b.machine()+" "+version("etcd", "--version")+".")
	})
}

func (f *fleet) close() (err error) {
	for _, m := range f.members {
		err = errors.Join(err, m.dismiss(), m.server.stop(), m.host.Close())
	}
	if f.store != nil {
		err = errors.Join(err, f.store.stop())
	}
	if f.hub != nil {
		err = errors.Join(err, f.hub.close())
	}
	return err
}

func (f *fleet) spaFleet(args ...string) *exec.Cmd {
	args = append([]string{"--office", f.office, "--identity", f.identity}, args...)
	return exec.Command(filepath.Join(f.bin, "spa-fleet"), args...)
}

// spaServer returns a command of spa-server with the rights that a server started as root keeps. Each gateway has a
// user of its own: the kernel limits a user's inotify instances, of which a server has three.
func (f *fleet) spaServer(m *member, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(f.bin, "spa-server"), append([]string{"--config", m.dir}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: m.uid, Gid: m.uid},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW}}
	return cmd
}

// found makes the office and etcd, and gateways that join the fleet.
func (f *fleet) found() error {
	hub, err := lab.NewHost("office")
	if err != nil {
		return err
	}
	f.hub = &network{client: hub, gateway: hub}
	if err := hub.AddAddr("lo", storeAddr+"/32"); err != nil {
		return err
	}
	if f.store, err = startStore(f.fresh("etcd"), hub); err != nil {
		return err
	}
	made := f.spaFleet("init", "--name", "prod", "--domain", "example.net", "--service", "ssh=tcp/22")
	if err := must(made); err != nil {
		return err
	}
	o, err := office.Load(f.office)
	if err != nil {
		return err
	}
	f.id = o.Fleet
	for i := range f.gateways {
		if err := errors.Join(f.ctx.Err(), f.join(i, "fleet.office="+base64.StdEncoding.EncodeToString(o.Key))); err != nil {
			return fmt.Errorf("gateway %d: %w", i, err)
		}
	}
	return nil
}

// join adds a gateway and starts its server. The setting names the office's key.
func (f *fleet) join(i int, setting string) error {
	name := fmt.Sprintf("gw%03d", i)
	host, err := lab.NewHost(name)
	if err != nil {
		return err
	}
	m := &member{name: name, addr: "198.51.100." + strconv.Itoa(2*i+1), dir: f.fresh(name),
		uid: firstUser + uint32(i), host: host}
	f.members = append(f.members, m)
	hub, dev := "198.51.100."+strconv.Itoa(2*i), "to"+name
	if err := lab.Link(f.hub.client, dev, host, gatewayDev); err != nil {
		return err
	}
	err = errors.Join(f.hub.client.AddAddr(dev, hub+"/31"), host.AddAddr(gatewayDev, m.addr+"/31"))
	if err = errors.Join(err, host.Route(storeAddr+"/32", hub)); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(m.dir, 0o750), os.Chown(m.dir, int(m.uid), int(m.uid))); err != nil {
		return err
	}
	line, err := f.spaServer(m, "init", "--fleet", "--name", name, "--address", m.addr, "--service", "ssh=tcp/22").Output()
	if err != nil {
		return fmt.Errorf("spa-server init: %w", err)
	}
	err = errors.Join(os.WriteFile(m.dir+".line", line, 0o644), os.Mkdir(m.agentDir(), 0o755),
		os.Chown(m.agentDir(), nobody, nobody))
	if err != nil {
		return err
	}
	if err := must(f.spaFleet("gateway", "add", name, m.dir+".line")); err != nil {
		return err
	}
	err = must(f.spaServer(m, "set", "fleet.id="+f.id.String(), setting, "fleet.bundle="+m.bundle()))
	if err != nil {
		return err
	}
	_, err = m.server.run(&network{gateway: host}, f.spaServer(m, "run"), func() bool {
		return strings.Contains(m.server.log.String(), "msg=ready")
	})
	return err
}

// agentDir is the directory of an agent's files and of the bundle that it puts there.
func (m *member) agentDir() string { return m.dir + ".agent" }
func (m *member) bundle() string   { return filepath.Join(m.agentDir(), "fleet.bundle") }

// enrol makes the clients. A command for each would read the whole office each time, so this calls what it calls.
func (f *fleet) enrol() error {
	me, err := office.ReadIdentity(f.identity, nil)
	if err != nil {
		return err
	}
	f.say("%d gateways; enrolling %d clients", f.gateways, f.fleetSizes.clients)
	return office.Change(f.office, func(o *office.Office) error {
		v, err := o.Unlock(me)
		for i := 0; err == nil && i < f.fleetSizes.clients; i++ {
			t := &keys.Terms{Client: keys.Client{Name: fmt.Sprintf("c%06d", i), Allow: []string{"ssh"}}}
			err = errors.Join(f.ctx.Err(), o.NewClient(v, t, func(p *keys.Profile) error {
				f.clients = append(f.clients, p)
				return nil
			}))
		}
		return err
	})
}

// The users that the agents and the first server run as.
const (
	nobody    = 65534
	firstUser = 70_000
)

// employ starts agents in place of those that run, with these lines in agent.toml.
func (f *fleet) employ(lines string) error {
	for _, m := range f.members {
		text := fmt.Sprintf("version = 1\ngateway = %q\nto = %q\n%s", m.name, m.bundle(),
			strings.ReplaceAll(lines, "GATEWAY", m.name))
		err := errors.Join(m.dismiss(), os.WriteFile(filepath.Join(m.agentDir(), "agent.toml"), []byte(text), 0o644))
		if err != nil {
			return err
		}
		cmd := exec.Command(filepath.Join(f.bin, "spa-fleet"), "agent", "--config", m.agentDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		m.agent = new(daemon)
		if _, err := m.agent.run(&network{gateway: m.host}, cmd, func() bool {
			return strings.Contains(m.agent.log.String(), "msg=following")
		}); err != nil {
			return err
		}
	}
	return nil
}

func (m *member) dismiss() error {
	if m.agent == nil {
		return nil
	}
	return m.agent.stop()
}

// await returns the time that a daemon wrote into the line of its log with this text, once it has.
func (f *fleet) await(d *daemon, text string) (time.Time, error) {
	ticks := time.NewTicker(20 * ms)
	defer ticks.Stop()
	for begun := time.Now(); ; {
		for line := range strings.Lines(d.log.String()) {
			if strings.Contains(line, text) {
				stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
				return time.Parse(time.RFC3339, stamp)
			}
		}
		if time.Since(begun) > startWithin {
			return time.Time{}, fmt.Errorf("no line with %q after %v:\n%s", text, startWithin, d.lastWords())
		}
		select {
		case <-f.ctx.Done():
			return time.Time{}, f.ctx.Err()
		case <-d.ended:
			return time.Time{}, fmt.Errorf("%s ended:\n%s", d.cmd.Path, d.lastWords())
		case <-ticks.C:
		}
	}
}
