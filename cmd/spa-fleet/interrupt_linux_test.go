package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/spa/fleet"
	"sallyport/spa/fleet/office"
	"sallyport/spa/lab"
)

// published is an office with gateways, published once.
type published struct{ dir, office, identity, bundles string }

func newPublished(t *testing.T, gateways int) published {
	dir := t.TempDir()
	p := published{dir, filepath.Join(dir, "office"), filepath.Join(dir, "me"), filepath.Join(dir, "bundles")}
	me := lab.Value(office.NewIdentity(p.identity, nil))(t)
	lab.Must(t, os.Mkdir(p.office, 0o750))
	lab.Must(t, os.Mkdir(p.bundles, 0o750))
	lab.Value(office.Create(p.office, office.Settings{Name: "prod", Domain: "example.net", KnockPorts: []uint16{62201},
		Services: map[string][]string{"ssh": {"tcp/22"}}}, "anna", me.Recipient()))(t)
	lab.Must(t, office.Change(p.office, func(o *office.Office) error {
		for i := range gateways {
			id := lab.Value(age.GenerateHybridIdentity())(t)
			lab.Value(o.AddGateway(fleet.Request{Name: fmt.Sprintf("gw%d", i), Address: fmt.Sprintf("192.0.2.%d", i+1),
				KnockPorts: []uint16{62201}, Recipient: id.Recipient()}, office.Site{}, false))(t)
		}
		return nil
	}))
	out, err := exec.Command("spa-fleet", p.publish(p.bundles)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return p
}

func (p published) publish(to string, more ...string) []string {
	return append([]string{"publish", "--identity", p.identity, "--office", p.office, "--to", to}, more...)
}

// serials returns the serials of the bundles, sorted. All must be whole.
func (p published) serials(t *testing.T) (list []int64) {
	for _, file := range lab.Value(filepath.Glob(p.bundles + "/*"))(t) {
		list = append(list, lab.Value(fleet.Parse(lab.Value(os.ReadFile(file))(t)))(t).Serial)
	}
	slices.Sort(list)
	return list
}

// note checks how a command ended, and returns the next command from its note.
func note(t *testing.T, cmd *exec.Cmd, code int, out, left string) string {
	t.Helper()
	begin := "spa-fleet: note: interrupted: " + left + "; next: "
	next, ok := strings.CutPrefix(out, begin)
	if got := cmd.ProcessState.ExitCode(); got != code || !ok || strings.Count(out, "\n") != 1 {
		t.Fatalf("exit status %d, want %d; it printed %q, want %q", got, code, out, begin)
	}
	return next
}

// TestInterrupted sends publish a signal while it writes bundles, each of which takes a while: it stops, every file is
// whole, and the command that it prints ends what it began.
func TestInterrupted(t *testing.T) {
	strace := lab.NeedProgram(t, "strace", "apt-get install strace")
	const gateways = 12
	for name, code := range map[string]int{"INT": 130, "TERM": 143} {
		p := newPublished(t, gateways)
		cmd := exec.Command(strace, append([]string{"-f", "-qq", "-o", "/dev/null", "-P", p.bundles,
			"-e", "inject=fsync:delay_exit=20000", "-P", filepath.Join(p.bundles, "gw1.bundle"),
			"-e", "inject=renameat:signal=" + name, "spa-fleet"}, p.publish(p.bundles)...)...)
		out, _ := cmd.CombinedOutput()
		next := note(t, cmd, code, string(out),
			"some gateways may have their bundle with serial 2, the others not yet")
		if s := p.serials(t); len(s) != gateways || s[0] != 1 || s[gateways-1] != 2 {
			t.Errorf("%s: serials %d", name, s)
		}
		lab.OnlyFiles(t, p.office, "admins", "gateways", "office.toml", "published.toml", "vault.age")
		lab.Value(office.Load(p.office))(t)
		if out, err := exec.Command("sh", "-c", next).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", next, err, out)
		}
		if s := p.serials(t); s[0] != 3 || s[gateways-1] != 3 {
			t.Errorf("%s, then published: serials %d", name, s)
		}
	}
}

// TestInterruptedBefore: interrupted while etcd does not answer, publish says that it has published nothing.
func TestInterruptedBefore(t *testing.T) {
	p := newPublished(t, 1)
	l := lab.Value(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	connected := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		connected <- err
		if err == nil {
			defer c.Close()
			<-t.Context().Done()
		}
	}()
	before := lab.Value(os.ReadFile(filepath.Join(p.office, "published.toml")))(t)
	var out bytes.Buffer
	args := p.publish("etcd://"+l.Addr().String(), p.certificate(t)...)
	cmd := exec.Command("spa-fleet", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	lab.Must(t, cmd.Start())
	lab.Must(t, <-connected)
	lab.Must(t, cmd.Process.Signal(syscall.SIGINT))
	cmd.Wait()
	next := strings.Fields(strings.ReplaceAll(note(t, cmd, 130, out.String(), "nothing was published"), "'", ""))
	slices.Sort(next)
	want := append(args, "spa-fleet")
	if slices.Sort(want); !slices.Equal(next, want) {
		t.Errorf("the next command is %s, want %s", next, want)
	}
	if after := lab.Value(os.ReadFile(filepath.Join(p.office, "published.toml")))(t); !bytes.Equal(after, before) {
		t.Errorf("published.toml has changed: %s", after)
	}
}

// certificate makes an administrator's certificate for etcd, and returns the flags that name it.
func (p published) certificate(t *testing.T) []string {
	public, private, err := ed25519.GenerateKey(nil)
	lab.Must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert := lab.Value(x509.CreateCertificate(rand.Reader, template, template, public, private))(t)
	key := lab.Value(x509.MarshalPKCS8PrivateKey(private))(t)
	var flags []string
	for _, file := range []struct {
		flag, kind string
		der        []byte
	}{{"cert", "CERTIFICATE", cert}, {"key", "PRIVATE KEY", key}} {
		path := filepath.Join(p.dir, file.flag+".pem")
		lab.Must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: file.kind, Bytes: file.der}), 0o600))
		flags = append(flags, "--"+file.flag, path)
	}
	return flags
}
