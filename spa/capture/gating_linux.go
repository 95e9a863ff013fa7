package capture

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"sallyport/spa/capture/gate"
	"sallyport/spa/stun"
)

// gating is the gate of a capture, if it has one.
type gating struct {
	*gate.Gate           // nil: there is none
	follower   *follower // nil: there is no XDP gate

	mu    sync.Mutex // guards the state
	state Gating
}

// status returns where tags are checked now.
func (g *gating) status() Gating {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Gating{Mode: g.state.Mode, XDP: slices.Clone(g.state.XDP), Why: slices.Clone(g.state.Why)}
}

// lost notes that an interface with the gate is gone. Another of its name has the gate of the sockets.
func (g *gating) lost(i gate.Interface) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state.XDP = slices.DeleteFunc(g.state.XDP, func(name string) bool { return name == i.Name })
	g.state.Why = append(g.state.Why, i.Name+" is gone: after a restart, the gate is on its successor too")
	if len(g.state.XDP) == 0 {
		g.state.Mode = "socket"
	}
}

// open opens the gate and the sockets with it. Where the kernel or the process's rights do not allow a gate, the
// sockets have none, and every packet is checked by the server.
func (g *gating) open(c Config, sockets func(Config, *gate.Gate) error) error {
	g.state = Gating{Mode: "none"}
	if !c.Gate.on() {
		return sockets(c, nil)
	}
	err := g.openWith(c, sockets)
	if err == nil {
		return nil
	}
	g.state.Why = []string{err.Error()}
	return errors.Join(g.close(), sockets(c, nil))
}

func (g *gating) openWith(c Config, sockets func(Config, *gate.Gate) error) error {
	config := gate.Config{Ports: c.Ports, Shared: c.Gate.Shared, MinLen: c.MinLen, MaxLen: c.MaxLen, Keys: c.Gate.Keys}
	if c.Browser {
		config.FrameMin, config.FrameMax = stun.MinLen, stun.MaxLen
	}
	opened, err := gate.Open(config)
	if err != nil {
		return err
	}
	g.Gate = opened
	if err := sockets(c, opened); err != nil {
		return err
	}
	g.state.Mode = "socket"
	if c.Gate.Mode == "xdp" {
		g.openXDP(c)
	}
	return opened.Seal()
}

// openXDP puts the gate on the interfaces too. Where it cannot, the sockets have theirs.
func (g *gating) openXDP(c Config) {
	f, err := newFollower(g.Gate)
	if err != nil {
		g.state.Why = []string{err.Error()}
		return
	}
	on, problems := g.AttachXDP(f.wanted(c.Interfaces))
	for _, problem := range problems {
		g.state.Why = append(g.state.Why, problem.Error())
	}
	if len(on) == 0 {
		f.close()
		if len(problems) == 0 {
			g.state.Why = []string{"there is no interface yet"}
		}
		return
	}
	g.state.Mode, g.follower = "xdp", f
	for _, i := range on {
		g.state.XDP = append(g.state.XDP, i.Name)
	}
	f.start(on, g.lost)
}

// close takes the gate off the interfaces. Counts stay readable.
func (g *gating) close() error {
	if g.follower != nil {
		g.follower.stop()
	}
	g.follower = nil
	return g.Gate.Close()
}

// A follower keeps the addresses of this host up to date for an XDP gate, also while no packet comes.
type follower struct {
	gate *gate.Gate
	host *host
	wake int // an eventfd
	done sync.WaitGroup
}

func newFollower(g *gate.Gate) (*follower, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening an eventfd: %w", err)
	}
	h, err := openHost()
	if err != nil {
		unix.Close(wake)
		return nil, err
	}
	return &follower{gate: g, host: h, wake: wake}, nil
}

// wanted returns the interfaces with Ethernet frames that packets may come in by. If none is named, ports of bridges
// and bonds are left out: packets for this host come in by the bridge or bond.
func (f *follower) wanted(names []string) []gate.Interface {
	var list []gate.Interface
	for _, index := range slices.Sorted(maps.Keys(f.host.links)) {
		l := f.host.links[index]
		if !l.ethernet || len(names) == 0 && l.port || len(names) > 0 && !l.isNamed(names) {
			continue
		}
		list = append(list, gate.Interface{Index: int(index), Name: l.name})
	}
	return list
}

// start follows the addresses, and the interfaces on which the gate is. If it ends, the addresses are forgotten: XDP
// then drops nothing.
func (f *follower) start(on []gate.Interface, lost func(gate.Interface)) {
	f.tell()
	f.done.Go(func() {
		defer f.gate.SetOwn(nil)
		fds := [...]unix.PollFd{{Fd: int32(f.host.events.fd), Events: unix.POLLIN}, {Fd: int32(f.wake), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(fds[:], -1); err != nil && !errors.Is(err, unix.EINTR) || fds[1].Revents != 0 {
				return
			}
			f.host.refresh()
			f.tell()
			on = slices.DeleteFunc(on, func(i gate.Interface) bool {
				_, there := f.host.links[int32(i.Index)]
				if !there {
					lost(i)
				}
				return !there
			})
		}
	})
}

// tell gives the gate the addresses.
func (f *follower) tell() {
	own := slices.DeleteFunc(slices.Collect(maps.Keys(f.host.own)), func(a netip.Addr) bool { return a.IsLoopback() })
	f.gate.SetOwn(own)
}

func (f *follower) stop() {
	unix.Write(f.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.done.Wait()
	f.close()
}

func (f *follower) close() {
	f.host.close()
	unix.Close(f.wake)
}
