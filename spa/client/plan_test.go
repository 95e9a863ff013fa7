package client

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

func mustSource(t *testing.T, s string) Source {
	t.Helper()
	source := lab.Value(ParseSource(s))(t)
	return source
}

// both gives the gateway a name with an address of each family.
func both(t *testing.T) (*gateway, *fakeNet) {
	g, n := fakes(t)
	g.profile.Address = "gw.example.net"
	n.hosts = map[string][]netip.Addr{"gw.example.net": {gate6, gate4, gate4}}
	return g, n
}

// Behind a translator from IPv6 to IPv4 the gateway does not see a stated IPv6 address: that is reported before
// anything is sent, and nothing else is tried. Without a stated address, or on another route, the client knocks.
func TestNAT64(t *testing.T) {
	for name, c := range map[string]struct {
		gateways []string
		source   string
		wrong    bool
		routes   []string // destinations, one of each route
	}{
		"auto":                     {[]string{"64:ff9b::c000:201"}, "auto", true, nil},
		"the local prefix":         {[]string{"64:ff9b:1:2::c000:201"}, "auto", true, nil},
		"an address":               {[]string{"64:ff9b::c000:201"}, "2a00::4", true, nil},
		"observed":                 {[]string{"64:ff9b::c000:201"}, "observed", false, []string{"64:ff9b::c000:201"}},
		"an IPv4 way":              {[]string{"64:ff9b::c000:201", "192.0.2.1"}, "auto", false, []string{"192.0.2.1"}},
		"another IPv6 address":     {[]string{"64:ff9b::c000:201", "2001:db8::1"}, "auto", false, []string{"2001:db8::1"}},
		"an ordinary IPv6 address": {[]string{"2001:db8::1"}, "auto", false, []string{"2001:db8::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			g, n := both(t)
			n.hosts["gw.example.net"] = nil
			for _, text := range c.gateways {
				addr := netip.MustParseAddr(text)
				n.hosts["gw.example.net"] = append(n.hosts["gw.example.net"], addr)
				n.route[addr] = public6
				if addr.Is4() {
					n.route[addr] = public4
				}
			}
			command := open()
			command.Source = mustSource(t, c.source)
			plan, err := prepare(t.Context(), g.profile, command, n)
			var nat64 *NAT64Error
			if wrong := errors.As(err, &nat64); wrong != c.wrong || (err != nil) != c.wrong ||
				wrong && (nat64.Stated != public6 && nat64.Stated.String() != "2a00::4" || !errors.As(err, new(*CommandError))) {
				t.Fatalf("got %v", err)
			}
			if c.wrong {
				return
			}
			var routes []string
			for _, r := range plan.Routes {
				routes = append(routes, r.To[0].Addr().String())
				if len(r.To) != 1 {
					t.Errorf("packets go to %v", r.To)
				}
			}
			if !slices.Equal(routes, c.routes) {
				t.Errorf("got routes to %v, want %v", routes, c.routes)
			}
			if knocks, _, _ := g.seen(); len(knocks) != 0 {
				t.Error("something was sent")
			}
		})
	}
}

func TestFamiliesAreKnockedOnTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		start := time.Now()
		var answers []Answer
		for a := range mustPrepare(t, g, n, open()).Knock(t.Context()) {
			answers = append(answers, a)
		}
		if len(answers) != 2 || answers[0].Verdict != Opened || answers[1].Verdict != Opened || time.Since(start) != 0 {
			t.Fatalf("got %+v after %v, want both opened at once", answers, time.Since(start))
		}
		if answers[0].Route.Family() == answers[1].Route.Family() {
			t.Error("both answers are of one family")
		}
		if knocks, _, _ := g.seen(); len(knocks) != 2 || knocks[0].ID == knocks[1].ID {
			t.Errorf("got %d packets, want one a family, each with its own request id", len(knocks))
		}
	})
}

// onlyFamily makes the gateway ignore the other family.
func onlyFamily(g *gateway, is4 bool, status spa.Status) {
	g.decide = func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
		if to.Addr().Is4() == is4 {
			return status
		}
		return 0
	}
}

func TestGraceForTheOtherFamily(t *testing.T) {
	for _, status := range []spa.Status{spa.Granted, spa.ReasonNotAllowed} {
		for _, is4 := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				g, n := both(t)
				onlyFamily(g, is4, status)
				start := time.Now()
				var first time.Duration
				var verdicts []Verdict
				packets := 0
				for a := range mustPrepare(t, g, n, open()).Knock(t.Context()) {
					if len(verdicts) == 0 {
						first = time.Since(start)
					}
					verdicts = append(verdicts, a.Verdict)
					packets += a.Tries
				}
				if knocks, _, _ := g.seen(); len(knocks) != packets {
					t.Errorf("says it sent %d packets, the gateway got %d", packets, len(knocks))
				}
				if len(verdicts) != 2 || verdicts[0] == Silent || verdicts[1] != Silent {
					t.Fatalf("got %v, want an answer and then silence", verdicts)
				}
				if waited := time.Since(start); first != 0 || waited != time.Second {
					t.Errorf("answers after %v and %v, want 0s and 1s", first, waited)
				}
			})
		}
	}
}

func TestLateFamilyWithinGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		start := time.Now()
		g.decide = func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
			if to.Addr().Is4() || time.Since(start) > 500*time.Millisecond {
				return spa.Granted
			}
			return 0
		}
		for a := range mustPrepare(t, g, n, open()).Knock(t.Context()) {
			if a.Verdict != Opened {
				t.Errorf("%s: got %v, want open", a.Route.Family(), a.Err)
			}
		}
	})
}

func TestLeavingTheLoopEndsTheKnock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		onlyFamily(g, true, spa.Granted)
		start := time.Now()
		for range mustPrepare(t, g, n, open()).Knock(t.Context()) {
			break
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("left after %v, want at once", waited)
		}
	})
}

func TestFamilyWithoutAWayIsLeftOut(t *testing.T) {
	g, n := both(t)
	delete(n.route, gate6)
	plan := mustPrepare(t, g, n, open())
	if len(plan.Routes) != 1 || plan.Routes[0].Family() != "IPv4" || len(plan.Routes[0].To) != 1 {
		t.Errorf("got %+v, want IPv4 only, and its address once", plan.Routes)
	}
	delete(n.route, gate4)
	if _, err := prepare(t.Context(), g.profile, open(), n); err == nil || !strings.Contains(err.Error(), "no route to") {
		t.Errorf("got %v, want no way there", err)
	}
}

func TestTargetsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		second := netip.MustParseAddr("192.0.2.3")
		n.hosts["gw.example.net"] = []netip.Addr{gate4, second}
		n.route[second] = private
		g.profile.KnockPorts = []uint16{62201, 443}
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		knockOnce(t, mustPrepare(t, g, n, open()))
		_, to, _ := g.seen()
		want := []netip.AddrPort{
			netip.AddrPortFrom(gate4, 62201), netip.AddrPortFrom(second, 62201),
			netip.AddrPortFrom(gate4, 443), netip.AddrPortFrom(second, 443),
			netip.AddrPortFrom(gate4, 62201),
		}
		if !slices.Equal(to[:5], want) {
			t.Errorf("got %v, want %v", to[:5], want)
		}
	})
}

func TestAnswerNamesTheAddressThatWasKnockedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		second := netip.MustParseAddr("192.0.2.3")
		n.hosts["gw.example.net"] = []netip.Addr{gate4, second}
		n.route[second] = private
		g.decide = func(_ spa.Knock, to netip.AddrPort, _ int) spa.Status {
			if to.Addr() == second {
				return spa.Granted
			}
			return 0
		}
		if a := knockOnce(t, mustPrepare(t, g, n, open())); a.Gateway != second {
			t.Errorf("got %v, want %v", a.Gateway, second)
		}
	})
}

func TestAddress(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1":          "192.0.2.1:62201",
		"192.0.2.1:443":      "192.0.2.1:443",
		"2001:db8::1":        "[2001:db8::1]:62201",
		"[2001:db8::1]:443":  "[2001:db8::1]:443",
		"gw.example.net:443": "192.0.2.1:443",
	} {
		g, n := both(t)
		n.hosts["gw.example.net"] = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1")}
		g.profile.Address = address
		plan := mustPrepare(t, g, n, open())
		if len(plan.Routes) != 1 || len(plan.Routes[0].To) != 1 || plan.Routes[0].To[0].String() != want {
			t.Errorf("%s: got %+v, want %s", address, plan.Routes, want)
		}
	}
	for _, address := range []string{"", "empty.example.net", "gw.example.net:0", "elsewhere.example.net", "a b"} {
		g, n := both(t)
		n.hosts["empty.example.net"] = []netip.Addr{}
		g.profile.Address = address
		if plan, err := prepare(t.Context(), g.profile, open(), n); err == nil || plan != nil {
			t.Errorf("%q: no error", address)
		}
	}
	g, n := fakes(t)
	g.profile.KnockPorts = nil
	if _, err := prepare(t.Context(), g.profile, open(), n); err == nil {
		t.Error("no error without a knock port")
	}
}

func TestLookupHasATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		g.profile.Address = "slow.example.net"
		c := open()
		c.Timeout = 3 * time.Second
		start := time.Now()
		if _, err := prepare(t.Context(), g.profile, c, n); !errors.Is(err, context.DeadlineExceeded) ||
			time.Since(start) != c.Timeout {
			t.Errorf("got %v after %v, want it to end after %v", err, time.Since(start), c.Timeout)
		}
	})
}

func TestSource(t *testing.T) {
	elsewhere := netip.MustParseAddr("8.8.8.8") // not an address of this machine
	for name, c := range map[string]struct {
		profile, flag string
		local         netip.Addr
		stated, bound netip.Addr
	}{
		"auto, private":             {"", "", private, netip.Addr{}, netip.Addr{}},
		"auto, routable":            {"", "", public4, public4, public4},
		"auto is asked for":         {"observed", "auto", public4, public4, public4},
		"observed":                  {"", "observed", public4, netip.Addr{}, netip.Addr{}},
		"profile says observed":     {"observed", "", public4, netip.Addr{}, netip.Addr{}},
		"profile says an address":   {"8.8.8.8", "", private, elsewhere, netip.Addr{}},
		"an address of a NAT":       {"", "8.8.8.8", private, elsewhere, netip.Addr{}},
		"an address of its own":     {"", "10.0.0.2", public4, private, private},
		"an IPv4 address as mapped": {"", "::ffff:10.0.0.2", public4, private, private},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := fakes(t)
				g.profile.Source, n.route[gate4] = c.profile, c.local
				// Silence is the answer to a wrong statement. None of the packets may omit it.
				g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
				command := open()
				command.Source = mustSource(t, c.flag)
				plan := mustPrepare(t, g, n, command)
				n.bound = nil
				knockOnce(t, plan)
				knocks, _, _ := g.seen()
				for i, k := range knocks {
					if k.Source != c.stated {
						t.Fatalf("packet %d states %v, want %v", i, k.Source, c.stated)
					}
				}
				bound := c.bound
				if !bound.IsValid() {
					bound = netip.IPv4Unspecified()
				}
				if len(n.bound) != 1 || n.bound[0] != bound {
					t.Errorf("bound to %v, want %v", n.bound, bound)
				}
			})
		})
	}
}

func TestSourceOfEachFamily(t *testing.T) {
	g, n := both(t)
	n.route[gate6] = public6
	plan := mustPrepare(t, g, n, open())
	if len(plan.Routes) != 2 || plan.Routes[0].Source.IsValid() || plan.Routes[1].Source != public6 {
		t.Errorf("got %+v, want IPv4 observed and IPv6 stated", plan.Routes)
	}
	c := open()
	c.Source = mustSource(t, unique6.String())
	plan = mustPrepare(t, g, n, c)
	if len(plan.Routes) != 1 || plan.Routes[0].Family() != "IPv6" || plan.Routes[0].Source != unique6 {
		t.Errorf("got %+v, want only the family of the stated address", plan.Routes)
	}
	g.profile.Address = gate4.String()
	var impossible *CommandError
	if _, err := prepare(t.Context(), g.profile, c, n); !errors.As(err, &impossible) {
		t.Errorf("an IPv6 source to an IPv4 gateway: got %v, want a CommandError", err)
	}
}

func TestParseSource(t *testing.T) {
	for _, s := range []string{"", "auto", "observed", "192.0.2.7", "2001:db8::7",
		"stun:stun.example.net", "stun:192.0.2.3:3479", "stun:[2001:db8::3]:3479"} {
		if source, err := ParseSource(s); err != nil || source.String() != s {
			t.Errorf("%q: got %q, %v", s, source, err)
		}
	}
	for _, s := range []string{"stun:", "stun:a b", "stun:example.net:0", "stun", "Auto", "gw", "0.0.0.0", "::",
		"224.0.0.1", "ff02::1", "fe80::1%eth0", "192.0.2.0/24", "192.0.2.7:80"} {
		if source, err := ParseSource(s); err == nil || source != (Source{}) {
			t.Errorf("%q: got %q, want an error", s, source)
		}
	}
}

// Impossible commands are reported before anything is looked up or sent.
func TestImpossibleCommands(t *testing.T) {
	many := make([]service.Service, 9)
	for i := range many {
		many[i] = service.Service{Proto: service.TCP, Port: uint16(i + 1)}
	}
	long := []service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 32)}}
	for name, c := range map[string]Command{
		"no type":           {Services: ssh},
		"no service":        {Type: spa.TypeOpen},
		"too many services": {Type: spa.TypeOpen, Services: many},
		"too long services": {Type: spa.TypeOpen, Services: long},
		"a service twice":   {Type: spa.TypeOpen, Services: append(slices.Clone(ssh), ssh...)},
		"microseconds":      {Type: spa.TypeOpen, Services: ssh, For: time.Microsecond},
		"a close that ends": {Type: spa.TypeClose, Services: ssh, For: time.Second},
		"no time":           {Type: spa.TypeOpen, Services: ssh, Timeout: -1},
	} {
		g, n := both(t)
		plan, err := prepare(t.Context(), g.profile, c, n)
		var impossible *CommandError
		if !errors.As(err, &impossible) || plan != nil {
			t.Errorf("%s: got %v, want a CommandError", name, err)
		}
		if knocks, _, _ := g.seen(); n.lookups != 0 || len(knocks) != 0 {
			t.Errorf("%s: something was looked up or sent", name)
		}
	}
	g, n := fakes(t)
	g.profile.Source = "stun:x"
	if _, err := prepare(t.Context(), g.profile, open(), n); err == nil {
		t.Error("a profile with a source that is not built: no error")
	}
}

func TestRoutable(t *testing.T) {
	for address, want := range map[string]bool{
		"0.1.2.3": false, "1.1.1.1": true, "9.255.255.255": true, "10.0.0.0": false,
		"10.255.255.255": false, "11.0.0.0": true,
		"100.63.255.255": true, "100.64.0.0": false, "100.127.255.255": false, "100.128.0.0": true,
		"127.0.0.1": false, "169.253.255.255": true, "169.254.0.1": false, "172.15.255.255": true, "172.16.0.0": false,
		"172.31.255.255": false, "172.32.0.0": true, "192.0.0.1": false, "192.0.0.9": true, "192.0.0.10": true,
		"192.0.0.11": false, "192.0.0.171": false, "192.0.1.0": true, "192.0.2.1": false, "192.0.3.0": true,
		"192.31.196.1": true, "192.52.193.1": true, "192.88.99.1": false, "192.167.255.255": true, "192.168.0.1": false,
		"192.169.0.0": true, "192.175.48.1": true, "198.17.255.255": true, "198.18.0.1": false, "198.19.255.255": false,
		"198.20.0.0": true, "198.51.100.7": false, "203.0.113.7": false, "203.0.114.0": true, "223.255.255.255": true,
		"224.0.0.1": false, "239.1.2.3": false, "240.0.0.1": false, "255.255.255.255": false,
		"::ffff:10.0.0.1": false, "::ffff:1.1.1.1": true,
		"::": false, "::1": false, "64:ff9b::1": true, "64:ff9b:1::1": false, "100::1": false,
		"100:0:0:1::1": false, "200::1": false,
		"1fff::1": false, "2000::1": true, "2001::1": false, "2001:1::1": true, "2001:1::2": true,
		"2001:1::3": true, "2001:1::4": false,
		"2001:2::1": false, "2001:2:1::1": false, "2001:3::1": true, "2001:4:112::1": true,
		"2001:4:113::1": false, "2001:10::1": false,
		"2001:20::1": true, "2001:2f::1": true, "2001:30::1": true, "2001:40::1": false,
		"2001:200::1": true, "2001:db7::1": true,
		"2001:db8::1": false, "2001:db9::1": true, "2002::1": false, "2620:4f:8000::1": true,
		"2a00::1": true, "3ffe::1": true,
		"3fff::1": false, "3fff:fff::1": false, "3fff:1000::1": true, "4000::1": false, "5f00::1": false, "fc00::1": false,
		"fd12::1": false, "fe80::1": false, "fec0::1": false, "ff0e::1": false, "2a00::1%eth0": false,
	} {
		if got := Routable(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: got %v, want %v", address, got, want)
		}
	}
	if Routable(netip.Addr{}) {
		t.Error("no address is routable")
	}
}

func TestVerdictString(t *testing.T) {
	for v, want := range map[Verdict]string{Silent: "no answer", Opened: "open", Closed: "closed", Refused: "refused",
		Sent: "sent", 9: "verdict-9"} {
		if v.String() != want {
			t.Errorf("got %q, want %q", v, want)
		}
	}
}
