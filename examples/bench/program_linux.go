package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sallyport/spa/lab"
)

// program opens the guarded port for a client that knocks.
type program interface {
	name() string
	// start runs the server on the gateway, and returns how long that took, once it listens.
	start(*network) (time.Duration, error)
	// knock is the client, which opens the port for one of the client's addresses. When it ends, the port may not be
	// open yet. Programs that open only for the sender's address ignore from.
	knock(from netip.Addr) *exec.Cmd
	// shut closes the port again, for every address.
	shut() error
	// use is what the server has used since its start.
	use() (usage, error)
	stop() error
}

// errNotOpen means that a knock did not open the port.
var errNotOpen = errors.New("the port did not open")

// knockWithin is how long a port may take to open.
const knockWithin = 10 * time.Second

// openFor knocks and returns the time from the start of the client until the port accepts.
func (f *field) openFor(from netip.Addr) (time.Duration, error) {
	begun := time.Now()
	if err := f.send(from); err != nil {
		return 0, err
	}
	open, err := f.net.accepts(from, knockWithin-time.Since(begun))
	if err == nil && !open {
		err = errNotOpen
	}
	return time.Since(begun), err
}

// send runs the client to its end.
func (f *field) send(from netip.Addr) error {
	if err := f.net.runClient(f.knock(from)); err != nil {
		return fmt.Errorf("%w: %w", errNotOpen, err)
	}
	return nil
}

// runClient runs a command on the client to its end.
func (n *network) runClient(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.client.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// shutFor makes sure that the port is shut for an address.
func (f *field) shutFor(from netip.Addr) error {
	if f.name() == nothing {
		return nil
	}
	if err := f.shut(); err != nil {
		return err
	}
	open, err := f.net.accepts(from, 20*ms)
	if err == nil && open {
		err = errors.New("the port is open before the knock")
	}
	return err
}

// daemon is a running server.
type daemon struct {
	net   *network
	cmd   *exec.Cmd
	log   lab.Buffer
	ended chan struct{} // closed when it has ended
}

// startWithin is for a server with very many clients.
const startWithin = 5 * time.Minute

// run starts a server on the gateway and returns how long it took until it was ready.
func (d *daemon) run(n *network, cmd *exec.Cmd, ready func() bool) (time.Duration, error) {
	d.net, d.cmd, d.ended = n, cmd, make(chan struct{})
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	begun := time.Now()
	if err := n.gateway.Start(cmd); err != nil {
		return 0, err
	}
	go func() {
		defer close(d.ended)
		_ = cmd.Wait() // its log says why
	}()
	look := time.NewTicker(ms)
	defer look.Stop()
	for !ready() {
		select {
		case <-d.ended:
			return 0, fmt.Errorf("%s ended:\n%s", cmd.Path, d.lastWords())
		case <-look.C:
		}
		if time.Since(begun) > startWithin {
			return 0, fmt.Errorf("%s is not ready after %v:\n%s", cmd.Path, startWithin, d.lastWords())
		}
	}
	return time.Since(begun), nil
}

// lastWords is the end of the server's log.
func (d *daemon) lastWords() string {
	text := d.log.String()
	return text[max(0, len(text)-2000):]
}

func (d *daemon) use() (usage, error) { return usageOf(d.cmd.Process.Pid) }

// stop kills the server. Its files and its network are gone soon anyway.
func (d *daemon) stop() error {
	if d.ended == nil {
		return nil
	}
	err := d.cmd.Process.Kill()
	<-d.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// sniffs reports whether a process on the gateway has a packet socket.
func (d *daemon) sniffs() bool {
	var text []byte
	err := d.net.gateway.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/packet")
		return err
	})
	return err == nil && bytes.Count(text, []byte("\n")) > 1
}

// nothing is the name of the floor.
const nothing = "no firewall"

// floor is a gateway without a firewall. Its client is a program that does nothing.
type floor struct{}

func (*floor) name() string                          { return nothing }
func (*floor) start(*network) (time.Duration, error) { return 0, nil }
func (*floor) knock(netip.Addr) *exec.Cmd            { return exec.Command("true") }
func (*floor) shut() error                           { return nil }
func (*floor) use() (usage, error)                   { return usage{}, nil }
func (*floor) stop() error                           { return nil }
