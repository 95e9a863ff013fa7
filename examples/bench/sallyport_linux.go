package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
)

// The names of Sallyport's columns.
const (
	ours     = "Sallyport"
	gateless = "Sallyport, no kernel gate"
	byXDP    = "Sallyport, gate by XDP"
	browsers = "Sallyport, browsers too"
	byTables = "Sallyport, iptables"
)

// variants are settings that are measured too, where the program knows them and the machine can do what they say.
var variants = []struct{ name, setting string }{
	{gateless, "capture.gate=none"},
	{byXDP, "capture.gate=xdp"},
	{browsers, "capture.browser=true"},
	{byTables, "firewall.backend=iptables"},
}

// sallyport is this project.
type sallyport struct {
	daemon
	title    string
	bin, dir string
	clients  int
	devices  int // those of the clients that have a profile
	settings []string
	others   []keys.Client // without a profile
	turn     int           // of the profiles
}

func (b *bench) sallyport(name string, clients int, settings ...string) *sallyport {
	return &sallyport{title: name, bin: b.bin, dir: b.fresh("sallyport"), clients: clients,
		devices: min(clients, b.devices), settings: settings}
}

// knows reports whether this Sallyport has a setting.
func (b *bench) knows(setting string) bool {
	s := b.sallyport("", 1)
	defer os.RemoveAll(s.dir)
	return s.initialise() == nil && s.program("spa-server", "set", setting).Run() == nil
}

func (s *sallyport) name() string { return s.title }

func (s *sallyport) start(n *network) (time.Duration, error) {
	if err := s.configure(); err != nil {
		return 0, err
	}
	took, err := s.run(n, s.program("spa-server", "run"), func() bool {
		return strings.Contains(s.log.String(), "msg=ready")
	})
	if err != nil {
		return 0, err
	}
	c, err := s.counters()
	if err == nil && c.Clients != s.clients {
		err = fmt.Errorf("%d of %d clients can knock:\n%s", c.Clients, s.clients, s.lastWords())
	}
	return took, err
}

// stop lets the server exit by itself: it then removes what it has outside its directory.
func (s *sallyport) stop() error {
	if s.ended == nil || s.cmd.Process.Signal(syscall.SIGTERM) != nil {
		return s.daemon.stop()
	}
	select {
	case <-s.ended:
	case <-time.After(stopWithin):
	}
	return s.daemon.stop()
}

const stopWithin = 10 * time.Second

func (s *sallyport) config() string { return filepath.Join(s.dir, "etc") }

// home is the directory of a device's profile.
func (s *sallyport) home(device int) string { return filepath.Join(s.dir, "home"+strconv.Itoa(device)) }

func (s *sallyport) program(name string, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(s.bin, name), append([]string{"--config", s.config()}, args...)...)
}

func (s *sallyport) initialise() error {
	return must(s.program("spa-server", "init", "--address", gatewayAddr.String(), "--service", "ssh=tcp/22"))
}

// configure writes the gateway's files. Limits are as high as they can be: knocks here are closer together than users'.
func (s *sallyport) configure() error {
	if err := s.initialise(); err != nil {
		return err
	}
	settings := append([]string{"set", "limits.live_nonces=4096", "limits.grants=4096", "limits.grants_per_hour=10000000"},
		s.settings...)
	if err := must(s.program("spa-server", settings...)); err != nil {
		return err
	}
	for i := range s.devices {
		if err := s.enrol(i); err != nil {
			return err
		}
	}
	return s.addClients(s.clients - s.devices)
}

// enrol makes a client that may open the port for the addresses of the pool too, and its profile.
func (s *sallyport) enrol(device int) error {
	name := "device" + strconv.Itoa(device)
	token, err := s.program("spa-keygen", "new", name, "--allow", "ssh").Output()
	if err != nil {
		return fmt.Errorf("spa-keygen new: %w", err)
	}
	if err := must(s.program("spa-keygen", "set", name, "delegate="+pool)); err != nil {
		return err
	}
	cmd := s.client(device, "import", "-")
	cmd.Stdin = strings.NewReader(string(token))
	return must(cmd)
}

// addClients writes the files of n more clients, which the same user can read as the first one's.
func (s *sallyport) addClients(n int) error {
	var as unix.Stat_t
	if err := unix.Stat(filepath.Join(s.config(), "clients", "device0"+keys.Suffix), &as); err != nil {
		return err
	}
	for i := range n {
		c := keys.Client{ID: keys.NewID(), Key: keys.NewKey()}
		text := fmt.Sprintf("version = 1\nid = %q\nkey = %q\nallow = [\"ssh\"]\n", c.ID.String(), c.Key.Reveal())
		path := filepath.Join(s.config(), "clients", "c"+strconv.Itoa(i)+keys.Suffix)
		if err := os.WriteFile(path, []byte(text), os.FileMode(as.Mode).Perm()); err != nil {
			return err
		}
		if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
			return err
		}
		s.others = append(s.others, c)
	}
	return nil
}

// crowd returns the clients that have no profile.
func (s *sallyport) crowd() ([]spa.Sender, error) {
	one, err := s.sender(0)
	if err != nil {
		return nil, err
	}
	senders := make([]spa.Sender, len(s.others))
	for i, c := range s.others {
		senders[i] = spa.Sender{Server: one.Server, Gate: one.Gate, ID: c.ID, Key: c.Key}
	}
	return senders, nil
}

// knock opens for the client's own address as users do, and for another one by --let-in.
func (s *sallyport) knock(from netip.Addr) *exec.Cmd {
	if from == clientAddr {
		return s.client(0, "open", "ssh", "--host", "gw")
	}
	s.turn++
	return s.client(s.turn%s.devices, "open", "ssh", "--host", "gw", "--let-in", from.String(), "--for", "1s")
}

// client returns a command of spa-client with a device's profile.
func (s *sallyport) client(device int, args ...string) *exec.Cmd {
	return exec.Command(filepath.Join(s.bin, "spa-client"), append([]string{"--config", s.home(device)}, args...)...)
}

// shut closes as users do. A revocation would refuse this client's knocks for a while.
func (s *sallyport) shut() error {
	return s.net.runClient(s.client(0, "close", "ssh", "--host", "gw"))
}

// counters are some that the server reports.
type counters struct {
	Clients int `json:"clients"`
	Capture struct {
		Drops uint64 `json:"kernel_drops"` // packets that arrived faster than they were read
	} `json:"capture"`
	Decided map[string]uint64 `json:"decided"` // packets by verdict
}

func (s *sallyport) counters() (counters, error) {
	out, err := s.program("spa-server", "status", "--json").Output()
	if err != nil {
		return counters{}, fmt.Errorf("spa-server status: %w", err)
	}
	var c counters
	return c, json.Unmarshal(out, &c)
}

// sender is who a device is, for the library.
func (s *sallyport) sender(device int) (spa.Sender, error) {
	p, err := keys.ReadProfile(filepath.Join(s.home(device), "hosts", "gw"+keys.Suffix))
	if err != nil {
		return spa.Sender{}, err
	}
	return spa.Sender{Server: p.ServerID, Gate: p.Gate, ID: p.ID, Key: p.Key}, nil
}

// seal makes a knock for the port.
func seal(s spa.Sender) ([]byte, error) {
	return spa.Seal(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now(),
		Services: []service.Service{{Name: "ssh"}}}, s)
}

// must runs a command to its end.
func must(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return errors.Join(fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err), errors.New(strings.TrimSpace(string(out))))
}
