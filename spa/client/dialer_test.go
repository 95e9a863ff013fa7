package client

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

func TestDialer(t *testing.T) {
	other4 := netip.MustParseAddr("192.0.2.7")
	for name, c := range map[string]struct {
		network, address string
		service          string // of the Dialer
		want             string // connected to
		asked            string
	}{
		"by the profile's name":       {"tcp", "gw:22", "", "192.0.2.1:22", "ssh"},
		"by its address":              {"tcp", "gw.example.net:22", "", "192.0.2.1:22", "ssh"},
		"by nothing":                  {"tcp", ":22", "", "192.0.2.1:22", "ssh"},
		"IPv6 only":                   {"tcp6", "gw:22", "", "[2001:db8::1]:22", "ssh"},
		"IPv4 only":                   {"tcp4", "gw:22", "", "192.0.2.1:22", "ssh"},
		"another address behind it":   {"tcp", "192.0.2.7:22", "", "192.0.2.7:22", "ssh"},
		"another name behind it":      {"tcp", "db.example.net:22", "", "192.0.2.7:22", "ssh"},
		"a name of the other family":  {"tcp", "six.example.net:22", "", "[2001:db8::7]:22", "ssh"},
		"of both families":            {"tcp", "both.example.net:22", "", "192.0.2.7:22", "ssh"},
		"a service that is not known": {"tcp", "gw:22", "new", "192.0.2.1:22", "new"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, n := dualStack(t)
				n.hosts["db.example.net"] = []netip.Addr{other4}
				n.hosts["both.example.net"] = []netip.Addr{netip.MustParseAddr("2001:db8::7"), other4}
				n.hosts["six.example.net"] = []netip.Addr{netip.MustParseAddr("2001:db8::7")}
				d := &Dialer{Profile: g.profile}
				if c.service != "" {
					d.Service = service.Service{Name: c.service}
				}
				conn := lab.Value(d.dial(t.Context(), c.network, c.address, n))(t)
				if to := conn.(*fakeTCP).to.String(); to != c.want {
					t.Errorf("connected to %s, want %s", to, c.want)
				}
				knocks, _, _ := g.seen()
				if !slices.Equal(knocks[0].Services, []service.Service{{Name: c.asked}}) {
					t.Errorf("asked for %v, want %s", knocks[0].Services, c.asked)
				}
				n.wantOpen(t, conn)
			})
		})
	}
}

func TestDialerRefuses(t *testing.T) {
	for name, address := range map[string]string{
		"no port": "gw", "a named port": "gw:ssh", "port 0": "gw:0", "a port of no service": "gw:23",
		"a host that does not resolve": "nowhere.example.net:22", "UDP": "gw:51820",
	} {
		g, n := dualStack(t)
		if _, err := (&Dialer{Profile: g.profile}).dial(t.Context(), "tcp", address, n); err == nil {
			t.Errorf("%s: no error", name)
		}
		if knocks, _, _ := g.seen(); len(knocks) != 0 {
			t.Errorf("%s: something was sent", name)
		}
	}
	g, n := dualStack(t)
	if _, err := (&Dialer{Profile: g.profile, Service: ssh[0]}).dial(t.Context(), "tcp", "gw:0", n); err == nil {
		t.Error("port 0 of a service that is named: no error")
	}
	g.profile.Services["other"] = []string{"tcp/20-30"}
	if _, err := (&Dialer{Profile: g.profile}).dial(t.Context(), "tcp", "gw:22", n); err == nil {
		t.Error("two services have the port: no error")
	}
	if _, err := (&Dialer{Profile: g.profile, Service: ssh[0]}).dial(t.Context(), "udp", "gw:22",
		n); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("udp: got %v", err)
	}
	g.profile.Address = gate4.String()
	if _, err := (&Dialer{Profile: g.profile, Service: ssh[0]}).dial(t.Context(), "tcp6", "gw:22", n); err == nil {
		t.Error("no address of the family: no error")
	}
}

// Without receipts the client tries the host, in its address families.
func TestDialerWithoutReceipts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := dualStack(t)
		g.profile.Receipts = false
		g.decide = func(spa.Knock, netip.AddrPort, int) spa.Status { return 0 }
		n.hosts["six.example.net"] = []netip.Addr{netip.MustParseAddr("2001:db8::7")}
		conn := lab.Value((&Dialer{Profile: g.profile}).dial(t.Context(), "tcp", "six.example.net:22", n))(t)
		if to := conn.(*fakeTCP).to.String(); to != "[2001:db8::7]:22" {
			t.Errorf("connected to %s", to)
		}
		n.wantOpen(t, conn)
	})
}

func TestDialerOfNoGateway(t *testing.T) {
	if conn, err := (&Dialer{}).DialContext(t.Context(), "tcp", "gw:22"); conn != nil || err == nil {
		t.Errorf("got %v, %v", conn, err)
	}
}
