package firewall

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/nftables"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestBareGuard: the guard that is in place while the full rules are prepared passes carried flows and grants, lets
// nothing else in, and nothing out.
func TestBareGuard(t *testing.T) {
	for _, name := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
		t.Run(name, func(t *testing.T) {
			s := kindNamed(t, name).newSite(t, func(c *Config) { c.Guarded = append(c.Guarded, ports("tcp/2300")) })
			accept := s.listen(":2300")
			const from = "192.0.2.2:4000"
			carried, gap := s.talk(accept, from, "192.0.2.1", "2300"), s.talk(accept, "192.0.2.3", "192.0.2.1", "2300")
			s.open()
			s.bare(guard.Plan{
				Leases: []guard.Lease{{
					Element: guard.Element{Source: netip.MustParseAddr("192.0.2.2"), Proto: service.TCP, Port: 22},
					Until:   time.Now().Add(long)}},
				Carried: []guard.Carried{{Flow: inboundTo(carried.server), Until: time.Now().Add(long)}},
			})
			s.connect("192.0.2.2", "192.0.2.1", "22")
			s.mutual(carried, true)
			s.dark("192.0.2.2", "192.0.2.1", "2300") // a new flow is not carried
			s.dark("192.0.2.3", "192.0.2.1", "22")
			s.mutual(gap, false)
			for _, c := range []net.Conn{carried.client, carried.server} {
				s.must(c.(*net.TCPConn).SetLinger(0)) // so that no TIME_WAIT blocks the port
				s.must(c.Close())
			}
			s.dark(from, "192.0.2.1", "2300") // nor one with the same ports
		})
	}
}

// TestBareGuardStandsFirst: the bare guard is there before the first rule that uses connection tracking is prepared.
func TestBareGuardStandsFirst(t *testing.T) {
	s := kindNamed(t, "iptables-nft").newSite(t, nil)
	path := filepath.Join(s.config.programs, "iptables-restore")
	s.must(os.Rename(path, path+"-real"))
	seen := s.config.lock // the only file that the helper's programs can write
	s.must(os.WriteFile(seen, nil, 0o600))
	fakeProgram(t, s.config.programs, "iptables-restore", `in=$(/bin/cat)
case "$in" in *conntrack*) [ -s `+seen+` ] || iptables-save -t mangle >`+seen+`;; esac
printf '%s\n' "$in" | `+path+`-real "$@"`)
	s.open()
	s.load(0)
	rules := lab.Value(os.ReadFile(seen))(s)
	s.says(string(rules), "-A PREROUTING -m comment --comment sallyport -j spa-guard", "-A spa-door",
		"-A spa-begun", "-j DROP")
}

// inboundTo returns the flow of a server's socket.
func inboundTo(c net.Conn) guard.Flow {
	end := func(a net.Addr) netip.AddrPort {
		p := netip.MustParseAddrPort(a.String())
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return guard.Flow{Proto: service.TCP, Remote: end(c.RemoteAddr()), Local: end(c.LocalAddr())}
}

// bare loads the guard without connection tracking.
func (s *site) bare(p guard.Plan) {
	s.Helper()
	b, ok := s.backend.(*iptables.Backend)
	if !ok {
		n := s.backend.(*nftables.Backend)
		s.must(n.Send(n.Objects, 0, false, &p, (*nftables.Draft).BareRules))
		if n.Tracks() {
			s.Error("a rule uses connection tracking")
		}
		return
	}
	b.Mu.Lock()
	defer b.Mu.Unlock()
	b.NoteEnds(p)
	s.must(b.Fill(p))
	r := b.GuardRules()
	mangle := iptables.Tables()[1]
	for _, v6 := range []bool{false, true} {
		cmd := exec.Command(filepath.Join(s.config.programs,
			map[bool]string{false: "iptables-restore", true: "ip6tables-restore"}[v6]), "--noflush")
		cmd.Stdin = strings.NewReader(r.Bare(v6).Restore(mangle, iptables.ParseSaved(mangle, "")))
		s.must(s.gw.Start(cmd))
		s.must(cmd.Wait())
	}
}
