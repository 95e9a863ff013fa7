package main

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sallyport/spa/lab"
)

// The names of the other programs.
const (
	fwknopName = "fwknop"
	knockdName = "knockd"
)

// havePeers returns an error that says how to get the programs that are missing.
func havePeers() error {
	var missing []string
	for _, name := range []string{"fwknopd", "fwknop", "knockd", "knock", "iptables"} {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("the programs to compare with are missing: %s\n"+
		"bench: hint: apt-get install fwknop-server fwknop-client knockd iptables\n"+
		"bench: hint: their services need not run: systemctl disable --now fwknop-server knockd",
		strings.Join(missing, ", "))
}

// knockd opens for a sequence of three ports.
type knockd struct {
	daemon
	dir string
}

// knockdPorts are the ports to knock on, one after the other.
var knockdPorts = []string{strconv.Itoa(firstKnockdPort), "8000", "9000"}

func (*knockd) name() string { return knockdName }

func (k *knockd) start(n *network) (time.Duration, error) {
	if err := closePorts(n, k.chain()); err != nil {
		return 0, err
	}
	text := "[options]\n\tlogfile = /dev/null\n[open]\n\tsequence = " + strings.Join(knockdPorts, ",") +
		"\n\tseq_timeout = 5\n\ttcpflags = syn\n\tcommand = iptables -A " + k.chain() +
		" -s %IP% -p tcp --dport 22 -j ACCEPT\n"
	conf := filepath.Join(k.dir, "knockd.conf")
	if err := errors.Join(os.MkdirAll(k.dir, 0o700), os.WriteFile(conf, []byte(text), 0o600)); err != nil {
		return 0, err
	}
	k.net = n
	return k.run(n, exec.Command("knockd", "-i", gatewayDev, "-c", conf), k.sniffs)
}

func (*knockd) chain() string { return "KNOCK" }

func (k *knockd) knock(netip.Addr) *exec.Cmd {
	return exec.Command("knock", append([]string{"-d", "1", gatewayAddr.String()}, knockdPorts...)...)
}

func (k *knockd) shut() error { return iptables(k.net.gateway, "-F", k.chain()) }

// fwknop opens for a packet that one of its stanzas, each with keys of its own, authenticates.
type fwknop struct {
	daemon
	dir     string
	clients int
}

func (*fwknop) name() string { return fwknopName }

func (f *fwknop) start(n *network) (time.Duration, error) {
	if err := errors.Join(closePorts(n, ""), f.configure()); err != nil {
		return 0, err
	}
	file := func(name string) string { return filepath.Join(f.dir, name) }
	return f.run(n, exec.Command("fwknopd", "-f", "-i", gatewayDev, "-c", file("fwknopd.conf"), "-a", file("access.conf"),
		"-r", f.dir, "-p", file("pid"), "-d", file("digests")), func() bool {
		return strings.Contains(f.log.String(), "Starting fwknopd main event loop")
	})
}

// configure writes the server's files, and the client's for the last of the stanzas: those before it are tried first.
func (f *fwknop) configure() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	access, err := os.OpenFile(filepath.Join(f.dir, "access.conf"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer access.Close()
	to := bufio.NewWriter(access)
	var key, hmac string
	for range f.clients {
		key, hmac = secret(32), secret(64)
		fmt.Fprintf(to, "SOURCE ANY\nREQUIRE_SOURCE_ADDRESS Y\nOPEN_PORTS tcp/22\nFW_ACCESS_TIMEOUT 30\n"+
			"KEY_BASE64 %s\nHMAC_KEY_BASE64 %s\n", key, hmac)
	}
	conf := fmt.Sprintf("PCAP_INTF %s;\nPCAP_FILTER udp port 62201;\nMAX_SPA_PACKET_AGE 120;\nENABLE_PCAP_PROMISC N;\n",
		gatewayDev)
	rc := fmt.Sprintf("[gw]\nSPA_SERVER %v\nACCESS tcp/22\nKEY_BASE64 %s\nHMAC_KEY_BASE64 %s\nUSE_HMAC Y\n",
		gatewayAddr, key, hmac)
	return errors.Join(to.Flush(), access.Close(),
		os.WriteFile(filepath.Join(f.dir, "fwknopd.conf"), []byte(conf), 0o600),
		os.WriteFile(filepath.Join(f.dir, "rc"), []byte(rc), 0o600))
}

func (f *fwknop) knock(from netip.Addr) *exec.Cmd {
	return exec.Command("fwknop", "--rc-file", filepath.Join(f.dir, "rc"), "--no-home-dir",
		"-E", filepath.Join(f.dir, "run"), "-n", "gw", "-a", from.String())
}

func (f *fwknop) shut() error { return iptables(f.net.gateway, "-F", "FWKNOP_INPUT") }

// packetLen is the length of a packet.
func (f *fwknop) packetLen() (int, error) {
	path := filepath.Join(f.dir, "packet")
	cmd := f.knock(clientAddr)
	cmd.Args = append(cmd.Args, "--test", "-B", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("fwknop --test: %w\n%s", err, out)
	}
	text, err := os.ReadFile(path)
	return len(strings.TrimSpace(string(text))), err
}

func secret(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.StdEncoding.EncodeToString(b)
}

// closePorts makes the gateway a host that drops by default, with a chain for the program to open ports in, if it does
// not make one itself.
func closePorts(n *network, chain string) error {
	rules := [][]string{
		{"-P", "INPUT", "DROP"},
		{"-A", "INPUT", "-i", "lo", "-j", "ACCEPT"},
		{"-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"},
	}
	if chain != "" {
		rules = append(rules, []string{"-N", chain}, []string{"-A", "INPUT", "-j", chain})
	}
	for _, rule := range rules {
		if err := iptables(n.gateway, rule...); err != nil {
			return err
		}
	}
	return nil
}

func iptables(h *lab.Host, args ...string) error {
	cmd := exec.Command("iptables", append([]string{"-w"}, args...)...)
	var out lab.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("iptables %s: %w\n%s", strings.Join(args, " "), err, out.String())
	}
	return nil
}
