package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/spa/lab"
)

// workspace names, in the environment, the directory of the built programs when the demo runs again as root of a user
// namespace, where there is no network to fetch modules from.
const workspace = "SALLYPORT_DEMO_DIR"

// run builds the programs, makes the hosts and tells the story. It leaves nothing behind.
func run(ctx context.Context, tell *teller) (err error) {
	dir := os.Getenv(workspace)
	if dir == "" {
		made, err := build(ctx, tell)
		if err != nil {
			return err
		}
		dir = made
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Setenv(workspace, dir); err != nil {
		return err
	}
	if err := lab.Reexec(); err != nil {
		return err
	}
	began := time.Now()
	if err := story(ctx, &demo{teller: tell, dir: dir}); err != nil {
		return err
	}
	tell.heading("Every step was as promised.")
	tell.say(fmt.Sprintf("It took %.0f seconds. Nothing is left of it: no process, no namespace, no file.",
		time.Since(began).Seconds()))
	return nil
}

// story runs the demo from the first host made to the last one closed.
func story(ctx context.Context, d *demo) (err error) {
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.makeHosts(); err != nil {
		return err
	}
	d.introduce()
	if err := d.follow(ctx, d.steps()); err != nil {
		return d.explain(err)
	}
	return nil
}

// build creates a directory with the three programs in bin.
func build(ctx context.Context, tell *teller) (string, error) {
	dir, err := os.MkdirTemp("", "sallyport-demo-")
	if err != nil {
		return "", err
	}
	tell.say("Building spa-server, spa-client and spa-keygen ...")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "bin")+"/",
		"sallyport/cmd/spa-server", "sallyport/cmd/spa-client", "sallyport/cmd/spa-keygen")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	// The server's user, if the machine has one, must be able to reach its files.
	err = errors.Join(err, os.Chmod(dir, 0o711))
	if err != nil {
		err = fmt.Errorf("building the programs: %w\n%s", err, out)
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// demo is the people and their things.
type demo struct {
	*teller
	dir       string
	cable     *lab.Host // the switch that joins the others
	gateway   *lab.Host
	alice     *person
	stranger  *person
	server    *server
	session   net.Conn // alice's first one
	knocks    [][]byte // the packets that she sent for it
	sniffer   *sniffer
	openUntil time.Time // when her first grant ends
}

// person is someone outside.
type person struct {
	*lab.Host
	addr4, addr6 string
}

const (
	gateway4 = "192.0.2.1"
	gateway6 = "2001:db8::1"
)

// makeHosts makes three hosts and the switch between them.
func (d *demo) makeHosts() (err error) {
	if d.cable, err = lab.NewHost("switch"); err != nil {
		return err
	}
	d.alice, d.stranger = &person{}, &person{}
	var ports []string
	for _, h := range []struct {
		host  **lab.Host
		who   *person
		name  string
		digit string
	}{
		{&d.gateway, &person{}, "gateway", "1"},
		{&d.alice.Host, d.alice, "alice", "2"},
		{&d.stranger.Host, d.stranger, "stranger", "3"},
	} {
		if *h.host, err = lab.NewHost(h.name); err != nil {
			return err
		}
		h.who.addr4, h.who.addr6 = "192.0.2."+h.digit, "2001:db8::"+h.digit
		if err := plug(*h.host, d.cable, h.name, h.who); err != nil {
			return err
		}
		ports = append(ports, h.name)
	}
	return d.cable.Bridge("br0", ports...)
}

// plug connects a host to a port of the switch and gives it its addresses.
func plug(h, cable *lab.Host, port string, who *person) error {
	if err := lab.Link(h, "eth0", cable, port); err != nil {
		return err
	}
	if err := h.AddAddr("eth0", who.addr4+"/24"); err != nil {
		return err
	}
	if !lab.HasIPv6() {
		return nil
	}
	return h.AddAddr("eth0", who.addr6+"/64")
}

// close removes whatever exists: processes, then hosts, then files.
func (d *demo) close() error {
	if d.sniffer != nil {
		d.sniffer.close()
	}
	if d.session != nil {
		d.session.Close()
	}
	hosts := []*lab.Host{d.cable, d.gateway}
	for _, p := range []*person{d.alice, d.stranger} {
		if p != nil {
			hosts = append(hosts, p.Host)
		}
	}
	var errs []error
	for _, h := range hosts {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	if d.server != nil {
		<-d.server.ended // killed with its host
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// explain adds the server's last messages to the error of a step.
func (d *demo) explain(err error) error {
	if d.server == nil || d.server.said.String() == "" {
		return err
	}
	return fmt.Errorf("%w\nthe server said:\n%s", err, d.server.said.String())
}

// command runs a program on a host to its end and returns its output.
func (d *demo) command(ctx context.Context, on *lab.Host, prompt, stdin, program string,
	args ...string) (string, error) {
	line := program + " " + strings.Join(args, " ")
	d.teller.command(prompt, line)
	cmd := d.program(ctx, program, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := on.Start(cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", line, err, stdout.String(), stderr.String())
	}
	// The program runs in this directory.
	return strings.ReplaceAll(stdout.String()+stderr.String(), d.dir+"/", "./"), nil
}

// program returns one of our programs, run in the demo's directory. It is asked to exit when ctx ends.
func (d *demo) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(d.dir, "bin", name), args...)
	cmd.Dir = d.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
