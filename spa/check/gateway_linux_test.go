package check

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sallyport/firewall/survey"
	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/setup"
)

// quietHost returns a simulated machine without problems.
func quietHost() *host {
	return &host{
		root: "/nonexistent",
		links: []survey.Link{{Name: "eth0", Index: 2, Up: true,
			Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}},
		clock: clock{known: true, synced: true},
		accounts: func(string) (uid, gid int, ok bool) {
			_, gid, _ = sandbox.Becomes(setup.SystemUser)
			return 64123, gid, true
		},
		resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") },
		medium:  func(string) medium { return onDisk },
		connect: func(context.Context, netip.AddrPort) error { return nil },
	}
}

// scene is a gateway in its own namespace, with real rule sets and sockets, and simulated files.
type scene struct {
	t      *testing.T
	on     *lab.Host
	root   string // of the machine's files
	config *config.Config
}

// dropping is a table that drops everything but ssh, as a host should have.
const dropping = "table inet filter {\nchain input {\ntype filter hook input priority 0; policy drop;\niif lo " +
	"accept\nct state established,related accept\ntcp dport 22 accept\n}\n}\n"

// newScene makes a gateway without problems: ssh is served and guarded, and the guard is loaded, and will be at boot.
func newScene(t *testing.T, change func(*config.Config)) *scene {
	t.Helper()
	s := &scene{t: t, root: t.TempDir(), config: initialised(t, change, keys.Client{RequireSource: true})}
	_, s.on = lab.Pair(t)
	s.listen("0.0.0.0:22")
	s.nft(dropping + "table inet spa { chain guard { }\n}\n")
	s.file("run/systemd/system/x", "")
	s.enable("spa-guard.service")
	s.enable("spa-server.service")
	return s
}

func (s *scene) listen(addr string) {
	s.t.Helper()
	_, err := lab.EchoServer(s.on, addr)
	lab.Must(s.t, err)
}

// nft replaces all rules.
func (s *scene) nft(rules string) {
	s.t.Helper()
	s.feed("flush ruleset\n"+rules, "nft", "-f", "-")
}

func (s *scene) feed(text, program string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(lab.NeedProgram(s.t, program, "apt-get install nftables iptables"), args...)
	cmd.Stdin = strings.NewReader(text)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	lab.Must(s.t, s.on.Start(cmd))
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("%s: %v\n%s", program, err, said.String())
	}
}

// tell runs a command without input.
func (s *scene) tell(program string, args ...string) { s.t.Helper(); s.feed("", program, args...) }

// file writes a file of the machine.
func (s *scene) file(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	lab.Must(s.t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)))
}

func (s *scene) enable(unit string) {
	s.t.Helper()
	s.file("etc/systemd/system/multi-user.target.wants/"+unit, "")
}

// hold makes a process of this name hold listening sockets.
func (s *scene) hold(name string, addrs ...string) {
	s.t.Helper()
	sleep := lab.NeedProgram(s.t, "sleep", "apt-get install coreutils")
	path := filepath.Join(s.t.TempDir(), name)
	lab.Must(s.t, os.Symlink(sleep, path))
	cmd := exec.Command(path, "600")
	lab.Must(s.t, s.on.Do(func() error {
		for _, addr := range addrs {
			l, err := listenTCP(addr)
			if err != nil {
				return err
			}
			defer l.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, l)
		}
		return s.on.Start(cmd)
	}))
	s.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	comm := "/proc/" + pid(cmd) + "/comm"
	lab.Eventually(s.t, "the process to be "+name, func() bool {
		data, _ := os.ReadFile(comm)
		return strings.TrimSpace(string(data)) == name
	})
}

// look inspects the scene; what is the same on every machine is simulated.
func (s *scene) look() *host {
	s.t.Helper()
	var h *host
	lab.Must(s.t, s.on.Do(func() error {
		h = look(s.t.Context())
		h.ask = nil // no server runs here
		return nil
	}))
	s.t.Cleanup(h.close)
	quiet := quietHost()
	h.root, h.clock, h.accounts, h.resolve, h.medium = s.root, quiet.clock, quiet.accounts, quiet.resolve, quiet.medium
	h.connect = quiet.connect
	h.running, h.persists, h.around = true, true, around{}
	// An ordinary user's test does not see other users' processes: none of those is in the scene.
	h.unseen = slices.DeleteFunc(h.unseen, func(u unseen) bool { return u.what == whoListens })
	return h
}

func (s *scene) path(name string) string { return filepath.Join(s.config.Dir, name) }

// admitting returns a configuration of mode admit.
func admitting(c *config.Config) {
	c.Firewall.Mode = "admit"
	c.Firewall.Admit = config.Admit{Family: "inet", Table: "filter", Set4: "spa4", Set6: "spa6"}
}

// admitTable returns a table with the sets of mode admit and these rules.
func admitTable(rules string) string {
	return `table inet filter {
set spa4 { type ipv4_addr . inet_proto . inet_service; flags timeout; }
set spa6 { type ipv6_addr . inet_proto . inet_service; flags timeout; }
chain input { type filter hook input priority 0; policy drop;
` + rules + `
drop
}
}
`
}

const admits4, admits6 = "ip saddr . meta l4proto . th dport @spa4 accept\n", "ip6 saddr . meta l4proto " +
	". th dport @spa6 accept\n"

// TestHost: on a quiet host there are no findings; each fault is found, and nothing else.
func TestHost(t *testing.T) {
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	for _, test := range hostTests() {
		t.Run(test.name, test.run)
	}
}

func (test hostTest) run(t *testing.T) {
	s := newScene(t, test.config)
	if test.spoil != nil {
		test.spoil(s)
	}
	h := s.look()
	if test.pretend != nil {
		test.pretend(h)
	}
	weak := checkWeak(s.config, h) // those of TestNamesEachWeakening
	found := slices.DeleteFunc(examine(t.Context(), s.config.Dir, now, h),
		func(f Finding) bool { return slices.Contains(weak, f) })
	if test.want == "" {
		if len(found) != 0 {
			t.Errorf("got %+v, want nothing", found)
		}
		return
	}
	if len(found) != 1 || !says(found, test.want, test.says) {
		t.Errorf("got %+v, want a %q that says %q", found, test.want, test.says)
	}
	pasteable(t, found)
}

type hostTest struct {
	name    string
	config  func(*config.Config)
	spoil   func(*scene)
	pretend func(*host)
	want    Severity
	says    []string
}

// TestTrustedByAlternativeName: a rule does not match it, so it is a mistake, and the advice names the matching one.
func TestTrustedByAlternativeName(t *testing.T) {
	s := newScene(t, func(c *config.Config) { c.Firewall.TrustedInterfaces = []string{"vs", "enp0s5"} })
	alsoNamed("enp0s5")(s)
	found := checkInterfaces(s.config, s.look())
	if len(found) != 1 || !says(found, Problem, []string{"firewall.trusted_interfaces",
		"enp0s5 is an alternative name of vs", `write "vs"`}) {
		t.Errorf("got %+v", found)
	}
}
