package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"sallyport/examples/internal/stage"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// startStore starts etcd.
func (p *pair) startStore(ctx context.Context) error {
	url := "https://" + p.store.Addr4 + ":2379"
	etcd, err := p.background(p.store, "etcd", "--data-dir", "etcd", "--listen-client-urls", url,
		"--advertise-client-urls", url, "--cert-file", "etcd.pem", "--key-file", "etcd.key", "--client-cert-auth",
		"--trusted-ca-file", "ca.pem")
	if err != nil {
		return err
	}
	return etcd.HasSaid(ctx, "ready to serve client requests")
}

// agentDir returns the directory of a member's agent.toml.
func agentDir(m *member) string { return m.Name() + "-agent" }

// settle writes what a member of a site needs beside what every gateway of a fleet has: a directory in which server and
// agent meet, and the agent's settings.
func (p *pair) settle(ctx context.Context, m *member) error {
	run := m.Name() + "-run"
	p.Prompt(m.Name()+"#", "install -d -m 2750 -o spa -g spa-fleet "+run)
	uid, _, err := sandbox.Becomes(setup.SystemUser)
	if err != nil {
		return err
	}
	path := filepath.Join(p.Dir, run)
	if err := errors.Join(os.Mkdir(path, 0o750), os.Chown(path, uid, os.Getgid())); err != nil {
		return err
	}
	if err := p.on(ctx, m.Host, "#", "spa-server", "set", "fleet.share=../"+run+"/share.sock", "--config",
		m.Name()); err != nil {
		return err
	}
	settings := fmt.Sprintf(`version = 1
gateway = "%[1]s"
from = "etcd://%[2]s:2379"
to = "../%[1]s/fleet.bundle"
share = "../%[1]s-run/share.sock"
%[3]s
ca = "../ca.pem"
cert = "../%[1]s.pem"
key = "../%[1]s.key"
`, m.Name(), p.store.Addr4, p.fleet)
	p.Prompt(m.Name()+"#", "cat "+agentDir(m)+"/"+agent.FileName)
	p.Output(settings)
	dir := filepath.Join(p.Dir, agentDir(m))
	return errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, agent.FileName), []byte(settings), 0o644))
}

// background starts one of the machine's programs on a host.
func (p *pair) background(on *stage.Host, program string, args ...string) (*stage.Server, error) {
	p.Prompt(on.Name()+"#", strings.ReplaceAll(program+" "+strings.Join(args, " "), p.Dir+"/", "./")+" &")
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = p.Dir
	return p.Launch(on, cmd)
}

// start starts the programs of a gateway: the agent brings the bundle, and carries messages from the server to etcd.
func (p *pair) start(ctx context.Context, m *member) (err error) {
	if m.agent, err = p.startAgent(m); err != nil {
		return err
	}
	if m.server, err = p.Start(ctx, m.Host, m.Name()); err != nil {
		return err
	}
	if err := m.server.HasSaid(ctx, "joined the other members of the site"); err != nil {
		return err
	}
	if m.keepalived, err = p.startKeepalived(m); err != nil {
		return err
	}
	return m.keepalived.HasSaid(ctx, "VRRP_Script(spa_server) succeeded")
}

// agentUser is the user that the agent is to itself: it refuses to run as root.
const agentUser = 1000

func (p *pair) startAgent(m *member) (*stage.Server, error) {
	p.Prompt(m.Name()+"$", "spa-fleet agent --config "+agentDir(m)+" &")
	cmd := exec.Command(filepath.Join(p.Dir, "bin", "spa-fleet"), "agent", "--config",
		filepath.Join(p.Dir, agentDir(m)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: agentUser, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: agentUser, HostID: os.Getgid(), Size: 1}}}
	return p.Launch(m.Host, cmd)
}

//go:embed keepalived.conf
var keepalived string

// startKeepalived starts it with the file on the page. The first member has the higher priority.
func (p *pair) startKeepalived(m *member) (*stage.Server, error) {
	const command, priority = `"spa-server status"`, "priority 100 "
	if !strings.Contains(keepalived, command) || !strings.Contains(keepalived, priority) {
		return nil, errors.New("keepalived.conf is not as expected")
	}
	text := strings.Replace(keepalived, command, `"`+filepath.Join(p.Dir, "bin", "spa-server")+" status --config "+
		filepath.Join(p.Dir, m.Name())+`"`, 1)
	if m == p.members[0] {
		text = strings.Replace(text, priority, "priority 150 ", 1)
	}
	path := filepath.Join(p.Dir, m.Name()+"-keepalived")
	if err := os.WriteFile(path+".conf", []byte(text), 0o644); err != nil {
		return nil, err
	}
	return p.background(m.Host, "keepalived", "--dont-fork", "--log-console", "--no-syslog", "--vrrp", "--use-file",
		path+".conf", "--pid", path+".pid", "--vrrp_pid", path+"-vrrp.pid")
}
