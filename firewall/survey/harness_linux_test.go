package survey

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// host is a gateway with the interfaces vs (192.0.2.1, 2001:db8::1) and in0 (198.51.100.1).
func host(t testing.TB) *lab.Host {
	t.Helper()
	_, gateway := lab.Pair(t)
	for _, err := range []error{
		lab.Link(gateway, "in0", gateway, "in1"), gateway.AddAddr("in0", "198.51.100.1/24"),
	} {
		lab.Must(t, err)
	}
	return gateway
}

const get = "apt-get install nftables iptables"

// feed runs a program in the host with a text on its standard input.
func feed(t testing.TB, h *lab.Host, text, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(lab.NeedProgram(t, program, get), args...)
	cmd.Stdin = strings.NewReader(text)
	// The machine's own lock belongs to root.
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(t.TempDir(), "lock"))
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	lab.Must(t, h.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s: %v\n%s\n%s", program, err, said.String(), text)
	}
}

// load loads a rule set: a file of testdata, or the text itself.
func load(t testing.TB, h *lab.Host, program, rules string) {
	t.Helper()
	if data, err := os.ReadFile(filepath.Join("testdata", rules)); err == nil {
		rules = string(data)
	}
	if program == "nft" {
		feed(t, h, rules, "nft", "-f", "-")
		return
	}
	feed(t, h, rules, program)
}

// read surveys the host.
func read(t testing.TB, h *lab.Host) *Ruleset {
	t.Helper()
	var r *Ruleset
	lab.Must(t, h.Do(func() (err error) {
		r, err = Read(t.Context())
		return err
	}))
	t.Cleanup(func() { r.Close() })
	return r
}

// packet returns a packet for a port such as "tcp/22".
func packet(t testing.TB, port, to string) Packet {
	t.Helper()
	p := lab.Value(service.ParsePorts(port))(t)
	return Packet{Proto: p.Proto, Port: p.Low, To: netip.MustParseAddr(to), In: "vs"}
}

const (
	over4 = "192.0.2.1"
	over6 = "2001:db8::1"
)

func portsOf(p Packet) service.Ports { return service.Ports{Proto: p.Proto, Low: p.Port, High: p.Port} }

// listing returns everything that nft and legacy iptables would print.
func listing(t *testing.T, h *lab.Host) string {
	t.Helper()
	var all strings.Builder
	for _, command := range [][]string{{"nft", "list", "ruleset"}, {"cat", "/proc/self/net/ip_tables_names"}} {
		cmd := exec.Command(lab.NeedProgram(t, command[0], get), command[1:]...)
		cmd.Stdout = &all
		lab.Must(t, h.Start(cmd))
		cmd.Wait() // without legacy tables there may be no such list
	}
	return all.String()
}
