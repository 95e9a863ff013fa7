package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// aFleet is a fleet whose gateways listen on loopback addresses of their own, at one knock port. Each keeps what
// arrives and answers what it can open.
type aFleet struct {
	profile  *keys.Profile
	gateways map[string]*member

	mu      sync.Mutex
	arrived map[string][][]byte // by the gateway at whose address it arrived
}

// member is one gateway of it.
type member struct {
	at       netip.Addr
	udp      *net.UDPConn
	identity *spa.Identity
	client   *keys.Client
}

func (m *member) Lookup(id keys.ID) (keys.Credential, bool) {
	return keys.Credential{Client: *m.client, ID: id, Key: m.client.Key}, id == m.client.ID
}

var fleetNames = []string{"web7", "web8", "db-1"}

// newFleet starts the gateways and points this process's resolver at them.
func newFleet(t *testing.T) *aFleet {
	t.Helper()
	f := &aFleet{gateways: make(map[string]*member), arrived: make(map[string][][]byte),
		profile: &keys.Profile{Name: "prod", Address: "example.net", Gate: keys.NewGateKey(), Client: "alice",
			Key: keys.NewKey(), Fleet: keys.NewFleetID(), Receipts: true, Source: "observed"}}
	knock, ssh := f.listen(t)
	f.profile.KnockPorts = []uint16{knock}
	f.profile.Services = map[string][]string{"ssh": {fmt.Sprintf("tcp/%d", ssh)}}
	for _, name := range fleetNames {
		m, server := f.gateways[name], f.profile.Fleet.Server(name)
		m.client = &keys.Client{Name: "alice", ID: f.profile.Key.IDAt(server), Key: f.profile.Key.At(server)}
		m.identity = &spa.Identity{Server: server, Gates: []spa.Gate{{Key: f.profile.Gate.At(server)}},
			Window: 30 * time.Second}
		go f.serve(name, service.Ports{Proto: service.TCP, Low: ssh, High: ssh})
	}
	usual := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = usual })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go f.resolve(theirs)
		return ours, nil
	}}
	return f
}

// listen opens the gateways' sockets: one UDP port and one TCP port that are free at all their addresses.
func (f *aFleet) listen(t *testing.T) (knock, ssh uint16) {
	t.Helper()
	for range 100 {
		var opened []io.Closer
		knock, ssh = 0, 0
		err := func() error {
			for i, name := range fleetNames {
				at := netip.AddrFrom4([4]byte{127, 0, 7, byte(1 + i)})
				udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, knock)))
				if err != nil {
					return err
				}
				opened = append(opened, udp)
				tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.AddrPortFrom(at, ssh)))
				if err != nil {
					return err
				}
				opened = append(opened, tcp)
				knock, ssh = udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), tcp.Addr().(*net.TCPAddr).AddrPort().Port()
				f.gateways[name] = &member{at: at, udp: udp}
				go accept(tcp)
			}
			return nil
		}()
		closeAll := func() {
			for _, c := range opened {
				c.Close()
			}
		}
		if err == nil {
			t.Cleanup(closeAll)
			return knock, ssh
		}
		closeAll()
	}
	t.Fatal("no port is free at all addresses")
	return 0, 0
}

// accept ends every connection at once.
func accept(l *net.TCPListener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}

func (f *aFleet) serve(name string, ports service.Ports) {
	m, buf := f.gateways[name], make([]byte, 2048)
	for {
		n, from, err := m.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		f.mu.Lock()
		f.arrived[name] = append(f.arrived[name], bytes.Clone(buf[:n]))
		f.mu.Unlock()
		k, err := spa.Open(buf[:n], m.identity, m, time.Now())
		if err != nil {
			continue
		}
		r := spa.Receipt{Status: spa.Granted, Time: time.Now(), Source: from.Addr().Unmap(),
			Services: []spa.Granting{{Ports: []service.Ports{ports}, For: 30 * time.Second}}}
		if k.Type == spa.TypeClose {
			r.Status, r.Services[0].For = spa.Closed, 0
		}
		if receipt, err := spa.SealReceipt(r, &k, m.identity.Server); err == nil {
			m.udp.WriteToUDPAddrPort(receipt, from)
		}
	}
}

// resolve answers queries, as over TCP, for the gateways' names in the domain, and knows no others.
func (f *aFleet) resolve(conn net.Conn) {
	defer conn.Close()
	for {
		var length uint16
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		question := make([]byte, length)
		var q dnsmessage.Message
		if _, err := io.ReadFull(conn, question); err != nil || q.Unpack(question) != nil || len(q.Questions) != 1 {
			return
		}
		q.Response, q.RecursionAvailable, q.Additionals = true, true, nil
		asked := q.Questions[0]
		name, ok := strings.CutSuffix(asked.Name.String(), ".example.net.")
		m := f.gateways[name]
		switch {
		case !ok || m == nil:
			q.RCode = dnsmessage.RCodeNameError
		case asked.Type == dnsmessage.TypeA:
			q.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: asked.Name, Class: asked.Class,
				TTL: 1}, Body: &dnsmessage.AResource{A: m.at.As4()}}}
		}
		packed, err := q.Pack()
		if err != nil {
			return
		}
		conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...))
	}
}

// taken returns what has arrived since it was last called.
func (f *aFleet) taken() map[string][][]byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	taken := f.arrived
	f.arrived = make(map[string][][]byte)
	return taken
}

// secrets returns the fleet's keys, which no gateway has, in the forms in which they could appear.
func (f *aFleet) secrets(t *testing.T) [][]byte {
	t.Helper()
	var all [][]byte
	for _, text := range []string{f.profile.Key.Reveal(), f.profile.Gate.Reveal()} {
		key := lab.Value(base64.StdEncoding.DecodeString(text))(t)
		all = append(all, []byte(text), key[:16], key[16:], []byte(hex.EncodeToString(key)))
	}
	return all
}

// run runs a command in this process, and returns everything that it prints.
func (f *aFleet) run(t *testing.T, config, ring string, args ...string) ([]byte, error) {
	t.Helper()
	out := lab.Value(os.CreateTemp(t.TempDir(), ""))(t)
	defer out.Close()
	usual := os.Stdout
	os.Stdout = out // connect and exec use it themselves
	defer func() { os.Stdout = usual }()
	var said bytes.Buffer
	root := (&app{ring: fileRing(ring)}).root()
	root.SetArgs(append([]string{"--config", config}, args...))
	root.SetOut(&said)
	root.SetErr(&said)
	err := root.ExecuteContext(t.Context())
	if err != nil {
		fmt.Fprintln(&said, err)
	}
	passed := lab.Value(os.ReadFile(out.Name()))(t)
	return append(said.Bytes(), passed...), err
}

// TestFleetLaw: whatever a profile lists and however it is stored, a command sends packets to the gateway that --host
// names and to no other, they open there and at no other gateway, and the fleet's own keys are in no packet and no
// output.
func TestFleetLaw(t *testing.T) {
	f := newFleet(t)
	commands := map[string][]string{
		"open": {"open", "ssh"}, "close": {"close", "ssh"}, "wait": {"open", "ssh", "--wait", "--json"},
		"exec": {"exec", "ssh", "--", "true"}, "connect": {"connect", "ssh"},
		"doctor": {"doctor", "ssh", "--timeout", "5s"}, "probe": {"probe", "ssh"},
		"dry run": {"open", "ssh", "--dry-run"}, "ssh-config": {"ssh-config", "ssh"},
	}
	silent := []string{"dry run", "ssh-config"}
	for _, name := range fleetNames {
		for _, listed := range []bool{true, false} {
			for _, domain := range []bool{true, false} {
				for _, locked := range []bool{true, false} {
					config, ring := f.store(t, name, listed, domain, locked)
					host := "prod/" + name
					if domain && locked != listed { // as ssh hands it over
						host += ".EXAMPLE.net"
					}
					for _, command := range slices.Sorted(maps.Keys(commands)) {
						args := commands[command]
						args = slices.Insert(slices.Clone(args), 2, "--host", host)
						what := fmt.Sprintf("%s of %s, listed %v, domain %v, locked %v", command, host, listed, domain, locked)
						said, err := f.run(t, config, ring, args...)
						f.check(t, what, said, f.taken(), name, (listed || domain) && !slices.Contains(silent, command))
						if !listed && !domain && !errors.Is(err, keys.ErrGateway) {
							t.Errorf("%s: got %v, want ErrGateway", what, err)
						}
					}
				}
			}
		}
	}
}

// store writes the profile in a directory of its own, and returns that and the keyring.
func (f *aFleet) store(t *testing.T, name string, listed, domain, locked bool) (config, ring string) {
	t.Helper()
	config, ring = t.TempDir(), t.TempDir()
	p := *f.profile
	p.Gateways = make(map[string]string)
	for other, m := range f.gateways {
		if listed || other != name {
			p.Gateways[other] = m.at.String()
		}
	}
	if !domain {
		p.Address = ""
	}
	s := &keys.StoredProfile{Profile: p}
	if locked {
		s = lab.Value(p.Lock([]byte("a passphrase"), "a-name"))(t)
		lab.Must(t, fileRing(ring).Set("a-name", "a passphrase"))
	}
	hosts := filepath.Join(config, "hosts")
	lab.Must(t, os.Mkdir(hosts, 0o700))
	lab.Must(t, keys.WriteStored(hosts, s, false))
	return config, ring
}

func (f *aFleet) check(t *testing.T, what string, said []byte, arrived map[string][][]byte, name string, sends bool) {
	t.Helper()
	if sends != (len(arrived[name]) > 0) {
		t.Errorf("%s: %d packets arrived: %s", what, len(arrived[name]), said)
	}
	for at, packets := range arrived {
		if at != name && len(packets) > 0 {
			t.Errorf("%s: packets for %s", what, at)
		}
		for _, packet := range packets {
			f.checkPacket(t, what, packet, name)
		}
	}
	for _, secret := range f.secrets(t) {
		for _, bytesOf := range append(arrived[name], said) {
			if bytes.Contains(bytesOf, secret) {
				t.Errorf("%s: a key of the fleet is shown or sent", what)
			}
		}
	}
}

// checkPacket checks that a packet opens at one gateway alone, and not with the fleet's own keys.
func (f *aFleet) checkPacket(t *testing.T, what string, packet []byte, name string) {
	t.Helper()
	for other, m := range f.gateways {
		_, err := spa.Open(packet, m.identity, m, time.Now())
		if (err == nil) != (other == name) {
			t.Errorf("%s: at %s: %v", what, other, err)
		}
	}
	// Even if all had one gate key, the client's id and key are another's at each server.
	right := f.gateways[name]
	for other, m := range f.gateways {
		mixed := &spa.Identity{Server: m.identity.Server, Gates: right.identity.Gates, Window: m.identity.Window}
		if _, err := spa.Open(packet, mixed, m, time.Now()); other != name && !errors.Is(err, spa.ErrClient) {
			t.Errorf("%s: at %s with the same gate key: %v", what, other, err)
		}
		if _, err := spa.Open(packet, mixed, right, time.Now()); other != name && !errors.Is(err, spa.ErrMAC) {
			t.Errorf("%s: at %s with all of the right keys: %v", what, other, err)
		}
	}
	office := &spa.Identity{Server: right.identity.Server, Gates: []spa.Gate{{Key: f.profile.Gate}}, Window: time.Minute}
	if _, err := spa.Open(packet, office, right, time.Now()); !errors.Is(err, spa.ErrGate) {
		t.Errorf("%s: with the fleet's gate key: %v", what, err)
	}
}
