package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

func run(ctx context.Context, tell *stage.Teller) error {
	return stage.Run(ctx, tell, []string{"spa-server", "spa-client", "spa-fleet"}, story)
}

const (
	site   = "edge"
	domain = "example.net"
	shared = "192.0.2.100" // the address of the site, as in keepalived.conf
)

// pair is the people and their things.
type pair struct {
	*stage.Stage
	members         []*member
	store, office   *stage.Host
	alice, bob, eve *stage.Host
	fleet           string   // the line of office.toml with its id
	knocks          [][]byte // the packets that alice sent
}

// member is a gateway of the site, and its programs.
type member struct {
	*stage.Host
	server, agent, keepalived *stage.Server
}

// story runs the example from the first host made to the last step.
func story(ctx context.Context, s *stage.Stage) error {
	if groups, err := os.ReadFile("/proc/self/setgroups"); err == nil && string(groups) == "deny\n" {
		return errors.New("keepalived cannot run its scripts in a user namespace: run this as root")
	}
	for program, debian := range map[string]string{"keepalived": "keepalived", "etcd": "etcd-server"} {
		if _, err := find(program); err != nil {
			return fmt.Errorf("this example needs %s (apt-get install %s): %w", program, debian, err)
		}
	}
	hosts, err := s.Hosts("lb1", "lb2", "store", "office", "alice", "bob", "eve")
	if err != nil {
		return err
	}
	p := &pair{Stage: s, members: []*member{{Host: hosts[0]}, {Host: hosts[1]}}, store: hosts[2], office: hosts[3],
		alice: hosts[4], bob: hosts[5], eve: hosts[6]}
	for _, m := range p.members {
		if _, err := lab.EchoServer(m.Host.Host, ":22"); err != nil {
			return err
		}
	}
	names := filepath.Join(s.Dir, "names")
	if err := os.WriteFile(names, fmt.Appendf(nil, "%s %s.%s\n", shared, site, domain), 0o644); err != nil {
		return err
	}
	s.Sees = map[string]string{"/etc/hosts": names}
	p.introduce()
	return p.Follow(ctx, p.steps())
}

// find returns the path of a program, even if only root's PATH has it.
func find(program string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + program)
}

// manage runs spa-fleet in the office and shows what it prints.
func (p *pair) manage(ctx context.Context, args ...string) error {
	out, err := p.Manage(ctx, p.office, args...)
	p.Output(stage.Short(out))
	return err
}

// on runs one of our programs on a host and shows what it prints.
func (p *pair) on(ctx context.Context, host *stage.Host, prompt, program string, args ...string) error {
	out, err := p.Command(ctx, host, prompt, "", program, args...)
	p.Output(stage.Short(out))
	return err
}

// knock lets a client knock at the shared address.
func (p *pair) knock(ctx context.Context, who *stage.Host, command string, more ...string) error {
	return p.on(ctx, who, "$", "spa-client", slices.Concat([]string{command, "ssh", "--host", "prod/" + site}, more,
		[]string{"--config", who.Name()})...)
}

// meet connects from a host to port 22 of addresses.
func (p *pair) meet(who *stage.Host, want stage.Promise, addresses ...string) error {
	for _, address := range addresses {
		conn, err := p.Meet(who, want, address+":22")
		if conn != nil {
			conn.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}
