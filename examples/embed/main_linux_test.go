package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// The program reaches an HTTP and an ssh server that are dark to everyone else.
func TestEmbed(t *testing.T) {
	bin := lab.Programs(t, "sallyport/examples/embed")
	g := lab.NewGateway(t, bin, "ssh=tcp/22", "web=tcp/80")
	g.Start()
	serveHTTP(t, g.Host)
	key, known := serveSSH(t, g.Host)
	profile := filepath.Join(g.Home, "hosts", "gw.toml")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"http":                {[]string{"http", "http://gw/"}, "hello 192.0.2.2\n"},
		"http, by an address": {[]string{"http", "http://192.0.2.1/"}, "hello 192.0.2.2\n"},
		"ssh":                 {[]string{"ssh", "alice", key, known, "uptime"}, "alice runs uptime\n"},
	} {
		t.Run(name, func(t *testing.T) {
			out, code := lab.Run(t, g.Client, exec.Command(filepath.Join(bin, "embed"), append([]string{profile}, c.args...)...))
			if code != 0 || out != c.want {
				t.Errorf("exit %d, %q; want %q\nserver:\n%s", code, out, c.want, g.Log())
			}
		})
	}
}

// listen listens on a port of a host.
func listen(t *testing.T, h *lab.Host, port string) net.Listener {
	t.Helper()
	var l net.Listener
	lab.Must(t, h.Do(func() (err error) {
		l, err = net.Listen("tcp", ":"+port)
		return err
	}))
	t.Cleanup(func() { l.Close() })
	return l
}

func serveHTTP(t *testing.T, h *lab.Host) {
	l := listen(t, h, "80")
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "hello %s\n", host)
	}))
}

// serveSSH accepts every command of alice's, and returns the files with her key and the server's.
func serveSSH(t *testing.T, h *lab.Host) (key, known string) {
	host, own := newSigner(t), newSigner(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, k ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "alice" || string(k.Marshal()) != string(own.signer.PublicKey().Marshal()) {
			return nil, fmt.Errorf("not alice")
		}
		return nil, nil
	}}
	config.AddHostKey(host.signer)
	lab.Serve(t, listen(t, h, "22"), func(conn net.Conn) { answer(conn, config) })
	key, known = filepath.Join(t.TempDir(), "key"), filepath.Join(t.TempDir(), "known")
	write(t, key, pem.EncodeToMemory(own.block))
	write(t, known, []byte(knownhosts.Line([]string{"192.0.2.1"}, host.signer.PublicKey())+"\n"))
	return key, known
}

// answer serves a session in which each command succeeds.
func answer(conn net.Conn, config *ssh.ServerConfig) {
	session, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			var run struct{ Command string }
			ssh.Unmarshal(r.Payload, &run)
			r.Reply(true, nil)
			fmt.Fprintf(channel, "%s runs %s\n", session.User(), run.Command)
			channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{}))
			channel.Close()
		}
	}
}

type keyPair struct {
	signer ssh.Signer
	block  *pem.Block
}

func newSigner(t *testing.T) keyPair {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	lab.Must(t, err)
	signer := lab.Value(ssh.NewSignerFromKey(private))(t)
	block := lab.Value(ssh.MarshalPrivateKey(private, ""))(t)
	return keyPair{signer, block}
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	lab.Must(t, os.WriteFile(path, text, 0o600))
}
