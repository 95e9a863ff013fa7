package check

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/firewall/survey"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/setup"
)

// TestListeners: listeners for others in the namespace are found, with the processes that hold them.
func TestListeners(t *testing.T) {
	_, gateway := lab.Pair(t)
	// A process may have any name.
	comm := lab.Value(os.ReadFile("/proc/self/comm"))(t)
	defer os.WriteFile("/proc/self/comm", comm, 0)
	lab.Must(t, os.WriteFile("/proc/self/comm", []byte("x\x1b]0;y\n\u202ez"), 0))
	var found []listener
	lab.Must(t, gateway.Do(func() error {
		var open []interface{ Close() error }
		for _, addr := range []string{"192.0.2.1:2201", "[2001:db8::1]:2202", "127.0.0.1:2203"} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			open = append(open, l)
		}
		for _, addr := range []string{"192.0.2.1:2204", "[::1]:2205"} {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			open = append(open, c)
		}
		connected, err := net.Dial("udp", "192.0.2.2:53") // connected, so not for others
		if err != nil {
			return err
		}
		found, _ = listeners() // an ordinary user does not see other users' processes
		for _, c := range append(open, connected) {
			c.Close()
		}
		return nil
	}))
	var got []string
	for _, l := range found {
		got = append(got, l.Proto.String()+" "+l.local.String())
		if !slices.Contains(l.held, "x?]0;y??z") {
			t.Errorf("%v is held by %q", l.local, l.held)
		}
	}
	slices.Sort(got)
	want := []string{"tcp 127.0.0.1:2203", "tcp 192.0.2.1:2201", "tcp [2001:db8::1]:2202",
		"udp 192.0.2.1:2204", "udp [::1]:2205"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	h := host{listeners: found}
	if got := h.listens(service.TCP, 2201); len(got) != 1 || got[0].local != netip.MustParseAddrPort("192.0.2.1:2201") {
		t.Errorf("at tcp/2201: got %v", got)
	}
	if got := h.listens(service.UDP, 2201); len(got) != 0 {
		t.Errorf("at udp/2201: got %v", got)
	}
}

// TestNoListeners: an empty result differs from an unknown one.
func TestNoListeners(t *testing.T) {
	gateway := lab.New(t, "gateway")[0]
	err := gateway.Do(func() error {
		found, _ := listeners() // an ordinary user does not see other users' processes
		if found == nil || len(found) != 0 {
			t.Errorf("got %#v", found)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestApproaches: strangers arrive on the interfaces of default routes, or where knocks are expected; never on trusted
// ones, the loopback, or one that is down.
func TestApproaches(t *testing.T) {
	link := func(name string, up, loopback bool, prefixes ...string) survey.Link {
		l := survey.Link{Name: name, Up: up, Loopback: loopback}
		for _, p := range prefixes {
			l.Prefixes = append(l.Prefixes, netip.MustParsePrefix(p))
		}
		return l
	}
	h := &host{links: []survey.Link{
		link("lo", true, true, "127.0.0.1/8"),
		link("wan0", true, false, "192.0.2.1/24", "192.0.2.9/24", "fe80::1/64", "2001:db8::1/64"),
		link("lan0", true, false, "198.51.100.1/24"),
		link("old0", false, false, "198.51.100.9/24"),
	}}
	for _, test := range []struct {
		name     string
		firewall config.Firewall
		capture  config.Capture
		defaults []string
		want     []string
	}{
		{name: "all", want: []string{"wan0 192.0.2.1", "wan0 2001:db8::1", "lan0 198.51.100.1"}},
		{name: "trusted", firewall: config.Firewall{TrustedInterfaces: []string{"lan0"}},
			want: []string{"wan0 192.0.2.1", "wan0 2001:db8::1"}},
		{name: "default", defaults: []string{"wan0"}, want: []string{"wan0 192.0.2.1", "wan0 2001:db8::1"}},
		{name: "named", defaults: []string{"wan0"}, capture: config.Capture{Interfaces: []string{"lan0"}},
			want: []string{"lan0 198.51.100.1"}},
	} {
		h.defaults = test.defaults
		var got []string
		for _, a := range h.approaches(&config.Config{Firewall: test.firewall, Capture: test.capture}) {
			got = append(got, a.link+" "+a.to.String())
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// TestDefaultRoutes: the interfaces of default routes are those where strangers arrive.
func TestDefaultRoutes(t *testing.T) {
	_, gateway := lab.Pair(t)
	for _, err := range []error{
		lab.Link(gateway, "in0", gateway, "in1"), gateway.AddAddr("in0", "198.51.100.1/24"),
		gateway.AddAddr("in0", "2001:db8:2::1/64"),
	} {
		lab.Must(t, err)
	}
	want := func(names ...string) {
		t.Helper()
		var got []string
		err := gateway.Do(func() (err error) {
			got, err = defaultRoutes()
			return err
		})
		if err != nil || !slices.Equal(got, names) {
			t.Errorf("got %q and %v, want %q", got, err, names)
		}
	}
	want()
	lab.Must(t, gateway.Route("default", "192.0.2.2"))
	want("vs")
	lab.Must(t, gateway.Route("default", "2001:db8:2::9"))
	want("vs", "in0")
}

// TestReadClock: the kernel reports whether a time service keeps the clock, and reading it changes nothing.
func TestReadClock(t *testing.T) {
	if c, err := readClock(); err != nil || !c.known {
		t.Errorf("got %+v and %v", c, err)
	}
}

// TestClockOf: the clock is not kept if the kernel says so in either way (adjtimex(2)).
func TestClockOf(t *testing.T) {
	for name, test := range map[string]struct {
		state int
		timex unix.Timex
		want  clock
	}{
		"kept": {unix.TIME_OK, unix.Timex{Status: unix.STA_PLL, Esterror: 1500}, clock{known: true, synced: true,
			within: 1500 * time.Microsecond}},
		"alone": {unix.TIME_OK, unix.Timex{Status: unix.STA_UNSYNC}, clock{known: true}},
		"error": {unix.TIME_ERROR, unix.Timex{}, clock{known: true}},
	} {
		if got := clockOf(test.state, test.timex); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

// TestReadConntrack: in a namespace that tracks connections the limit is known.
func TestReadConntrack(t *testing.T) {
	_, gateway := lab.Pair(t)
	s := &scene{t: t, on: gateway}
	s.nft("table ip t { chain c { type filter hook input priority 0; ct state new accept; }\n}\n")
	err := gateway.Do(func() error {
		got, err := readConntrack()
		if got.max == 0 || got.count < 0 || got.count > got.max {
			t.Errorf("got %+v", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestMediumOf: proc is neither memory nor a network; shm is memory.
func TestMediumOf(t *testing.T) {
	for path, want := range map[string]medium{"/dev/shm": inMemory, "/proc": onDisk,
		filepath.Join(t.TempDir(), "absent"): onDisk} {
		if got := mediumOf(path); got != want {
			t.Errorf("%s: got %v, want %v", path, got, want)
		}
	}
}

// TestServes: a server is found under its name.
func TestServes(t *testing.T) {
	gateway := lab.New(t, "gateway")[0]
	err := gateway.Do(func() error {
		if setup.Running() {
			t.Error("a server is seen where there is none")
		}
		lock, err := setup.Lock(t.TempDir())
		if err != nil {
			return err
		}
		defer lock.Close()
		if !setup.Running() {
			t.Error("a server that holds the namespace is not seen")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
