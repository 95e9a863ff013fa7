package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/fleet/agent"
	"sallyport/spa/lab"
)

// etcd is a store on the loopback interface, of one member or several.
type etcd struct {
	members []*exec.Cmd
	hosts   []string
	ca      string
}

func newEtcd(t testing.TB, n int) *etcd {
	t.Helper()
	program := lab.NeedProgram(t, "etcd", "apt-get install etcd-server")
	dir := t.TempDir()
	key := lab.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	own := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der := lab.Value(x509.CreateCertificate(rand.Reader, own, own, &key.PublicKey, key))(t)
	e := &etcd{ca: filepath.Join(dir, "ca.pem")}
	for path, block := range map[string]*pem.Block{e.ca: {Type: "CERTIFICATE", Bytes: der},
		e.ca + ".key": {Type: "PRIVATE KEY", Bytes: lab.Value(x509.MarshalPKCS8PrivateKey(key))(t)}} {
		lab.Must(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	}
	var peers, cluster []string
	for i := range n {
		e.hosts, peers = append(e.hosts, freeAddress(t)), append(peers, freeAddress(t))
		cluster = append(cluster, fmt.Sprintf("%d=http://%s", i, peers[i]))
	}
	for i := range n {
		m := exec.Command(program, "--name", fmt.Sprint(i), "--data-dir", filepath.Join(dir, fmt.Sprint(i)),
			"--listen-client-urls", "https://"+e.hosts[i], "--advertise-client-urls", "https://"+e.hosts[i],
			"--listen-peer-urls", "http://"+peers[i], "--initial-advertise-peer-urls", "http://"+peers[i],
			"--initial-cluster", strings.Join(cluster, ","), "--cert-file", e.ca, "--key-file", e.ca+".key")
		lab.Must(t, m.Start())
		e.members = append(e.members, m)
		t.Cleanup(func() {
			m.Process.Kill()
			m.Wait()
		})
	}
	return e
}

// freeAddress returns a loopback address with a port that nobody has, and that will not be given out again at once.
func freeAddress(t testing.TB) string {
	t.Helper()
	l := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return l.Addr().String()
}

// configure writes a member's agent.toml, and returns its directory.
func (e *etcd) configure(t testing.TB, o *office) string {
	t.Helper()
	dir := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, agent.FileName), fmt.Appendf(nil, "version = 1\ngateway = %q\n"+
		"from = \"etcd://%s\"\nfleet = \"%s\"\nca = %q\nshare = %q\n", o.name, strings.Join(e.hosts, ","), o.seal.Fleet, e.ca,
		filepath.Join(o.dir, config.ShareFile)), 0o644))
	return dir
}

// connect runs the agent of a member as agent.toml describes it.
func (e *etcd) connect(t testing.TB, o *office) {
	t.Helper()
	bridge, closing, err := lab.Value(agent.Load(e.configure(t, o)))(t).OpenBridge(slog.New(slog.DiscardHandler))
	lab.Must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { bridge.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); closing() })
}

// TestSharedEtcd: real servers with real agents and etcd. One packet to both is granted once and in force at both; a
// close ends it at both before it is answered; while etcd hangs there is no answer.
func TestSharedEtcd(t *testing.T) {
	store := newEtcd(t, 1)
	s := newTogether(t, 2, store.connect)
	r := request()
	r.For = 5 * time.Minute
	if got := s.answers(s.members[0].gateway.seal(r, s.by), 3*time.Second, s.members...); len(got) != 1 ||
		got[0].Status != spa.Granted {
		t.Fatalf("one packet at both gateways: got %+v", got)
	}
	for _, o := range s.members {
		lab.Eventually(t, o.name+" to have the grant", func() bool { return len(o.grants()) == 1 })
	}
	r = request()
	r.Type = spa.TypeClose
	s.members[1].wantReceipt("192.0.2.2", s.members[1].gateway.seal(r, s.by), s.by, spa.Closed)
	for _, o := range s.members {
		if n := len(o.grants()); n != 0 {
			t.Errorf("after the answer to a close, %s has %d grants", o.name, n)
		}
	}
	lab.Must(t, store.members[0].Process.Signal(syscall.SIGSTOP))
	if got := s.answers(s.members[0].gateway.seal(request(), s.by), 3*time.Second, s.members...); len(got) != 0 {
		t.Errorf("while the store hangs: got %+v", got)
	}
	lab.Must(t, store.members[0].Process.Signal(syscall.SIGCONT))
	s.ready()
	lab.Eventually(t, "a knock to be answered again", func() bool {
		got := s.answers(s.members[0].gateway.seal(request(), s.by), 2*time.Second, s.members[0])
		return len(got) == 1 && (got[0].Status == spa.Granted || got[0].Status == spa.ReasonSuperseded)
	})
}
