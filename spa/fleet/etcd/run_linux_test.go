package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// authority signs the certificates of a test.
type authority struct {
	dir  string // has ca.pem
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{dir: t.TempDir(), key: lab.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true,
		NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := lab.Value(x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key))(t)
	a.cert = lab.Value(x509.ParseCertificate(der))(t)
	writePEM(t, filepath.Join(a.dir, "ca.pem"), "CERTIFICATE", der)
	return a
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	lab.Must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// issue writes NAME.pem and NAME.key for a user of etcd, or for etcd itself, valid until then.
func (a *authority) issue(t testing.TB, name string, until time.Time) (cert, key string) {
	t.Helper()
	own := lab.Value(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotAfter: until, KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der := lab.Value(x509.CreateCertificate(rand.Reader, template, a.cert, &own.PublicKey, a.key))(t)
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	writePEM(t, cert, "CERTIFICATE", der)
	writePEM(t, key, "PRIVATE KEY", lab.Value(x509.MarshalPKCS8PrivateKey(own))(t))
	return cert, key
}

// as returns the TLS settings of a user.
func (a *authority) as(t testing.TB, name string) *tls.Config {
	t.Helper()
	cert, key := a.issue(t, name, time.Now().Add(time.Hour))
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12,
		Certificates: []tls.Certificate{lab.Value(tls.LoadX509KeyPair(cert, key))(t)}}
}

// cluster is an etcd of one or more members, which takes only clients with certificates.
type cluster struct {
	*authority
	endpoints []string
	members   []*exec.Cmd
	args      [][]string
	groups    int // the group of the first, and so on: packets are told apart by it; 0: the test's own
}

func newCluster(t testing.TB, size int) *cluster {
	t.Helper()
	return newClusterAs(t, size, 0)
}

func newClusterAs(t testing.TB, size, groups int) *cluster {
	t.Helper()
	program := lab.NeedProgram(t, "etcd", "apt-get install etcd-server")
	c := &cluster{authority: newAuthority(t), groups: groups}
	cert, key := c.issue(t, "member", time.Now().Add(time.Hour))
	ports := freePorts(t, 2*size)
	var peers []string
	for i := range size {
		peers = append(peers, fmt.Sprintf("m%d=https://127.0.0.1:%d", i, ports[2*i+1]))
	}
	ca := filepath.Join(c.dir, "ca.pem")
	for i := range size {
		client := fmt.Sprintf("https://127.0.0.1:%d", ports[2*i])
		peer := fmt.Sprintf("https://127.0.0.1:%d", ports[2*i+1])
		c.endpoints = append(c.endpoints, client)
		c.args = append(c.args, []string{program, "--name", fmt.Sprintf("m%d", i), "--data-dir", t.TempDir(),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(peers, ","), "--client-cert-auth", "--trusted-ca-file", ca,
			"--cert-file", cert, "--key-file", key, "--peer-client-cert-auth", "--peer-trusted-ca-file", ca,
			"--peer-cert-file", cert, "--peer-key-file", key})
		c.members = append(c.members, nil)
	}
	for i := range size {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range c.members {
			c.kill(i)
		}
	})
	return c
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// start starts a member, again with what it had.
func (c *cluster) start(t testing.TB, i int) {
	t.Helper()
	c.members[i] = exec.Command(c.args[i][0], c.args[i][1:]...)
	if c.groups > 0 {
		group := &syscall.Credential{Gid: uint32(c.groups + i)}
		c.members[i].SysProcAttr = &syscall.SysProcAttr{Credential: group}
	}
	lab.Must(t, c.members[i].Start())
}

// kill kills a member with SIGKILL.
func (c *cluster) kill(i int) {
	if m := c.members[i]; m != nil {
		m.Process.Kill()
		m.Wait()
		c.members[i] = nil
	}
}
