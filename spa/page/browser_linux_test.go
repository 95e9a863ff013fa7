package page

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// view is the page in a browser, on a client's host beside a gateway that takes knocks from browsers.
type view struct {
	*testing.T
	browser *lab.Browser
	gw      *lab.Gateway
}

func newView(t *testing.T, bin string, start func(testing.TB, *lab.Host) *lab.Browser) *view {
	gw := lab.NewGateway(t, bin, "ssh=tcp/22", "web=tcp/80")
	v := &view{T: t, gw: gw}
	v.edit("# browser = true", "browser = true")
	v.edit(`address = "192.0.2.1"`, `address = "gw.example.net"`)
	lab.Must(t, gw.Client.Route("default", "192.0.2.1"))
	lab.Must(t, gw.Client.Route("::/0", "2001:db8::1"))
	gw.Start()
	_, err := lab.EchoServer(gw.Host, ":22")
	lab.Must(t, err)
	v.browser = start(t, gw.Client)
	return v
}

func (v *view) edit(old, new string) {
	v.Helper()
	path := filepath.Join(v.gw.Config, "server.toml")
	text := string(lab.Value(os.ReadFile(path))(v))
	if !strings.Contains(text, old) {
		v.Fatalf("server.toml lacks %s:\n%s", old, text)
	}
	lab.Must(v, os.WriteFile(path, []byte(strings.Replace(text, old, new, 1)), 0o640))
}

// keygen runs spa-keygen and returns what it prints.
func (v *view) keygen(args ...string) string {
	v.Helper()
	cmd := v.gw.Command("spa-keygen", args...)
	out, err := cmd.Output()
	if err != nil {
		v.Fatalf("spa-keygen %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// reads waits until the page shows a text.
func (v *view) reads(want string) {
	v.Helper()
	var text string
	defer func() {
		if !strings.Contains(text, want) {
			v.Logf("the page shows:\n%s\nserver:\n%s", text, v.gw.Log())
		}
	}()
	lab.Eventually(v, "the page to show "+want, func() bool {
		text = v.browser.Run("return document.body.innerText")
		return strings.Contains(text, want)
	})
}

// press presses a button by its text.
func (v *view) press(name string) {
	v.Helper()
	got := v.browser.Run(`const b = [...document.querySelectorAll('button')].find((b) => b.textContent === args[0]
		&& b.offsetParent !== null); if (!b) return 'no such button'; b.click(); return ''`, name)
	if got != "" {
		v.Fatalf("%s: %s: %s", v.browser.Name(), name, got)
	}
}

// fill writes into a field.
func (v *view) fill(id, text string) {
	v.Helper()
	v.browser.Run(`const f = document.getElementById(args[0]); f.value = args[1];
		f.dispatchEvent(new Event('input')); return ''`, id, text)
}

// opens reports whether a TCP connection from an address gets through to ssh.
func (v *view) opens(from, to string) bool {
	conn, err := lab.Dial(v.gw.Client, from, net.JoinHostPort(to, "22"), 300*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func (v *view) want(open bool, from, to, when string) {
	v.Helper()
	if got := v.opens(from, to); got != open {
		v.Errorf("%s: %s: from %s to %s open is %v, want %v\n%s", v.browser.Name(), when, from, to, got, open, v.gw.Log())
	}
}

// granted counts the grants to a client in the audit log.
func (v *view) granted(client string) int {
	v.Helper()
	n := 0
	for line := range strings.Lines(string(lab.Value(os.ReadFile(filepath.Join(v.gw.Config, "audit.jsonl")))(v))) {
		if strings.Contains(line, `"verdict":"granted"`) && strings.Contains(line, `"client":"`+client+`"`) {
			n++
		}
	}
	return n
}

// TestPageInBrowsers: in each browser the page takes a token from its link, opens a port for its own addresses in both families
// with one grant each, keeps the token sealed, closes the port, and gets no answer with a key that was revoked.
func TestPageInBrowsers(t *testing.T) {
	lab.NeedRoot(t)
	bin := lab.Programs(t)
	for name, start := range map[string]func(testing.TB, *lab.Host) *lab.Browser{"chromium": lab.Chromium,
		"firefox": lab.Firefox} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newView(t, bin, start)
			file := filepath.Join(t.TempDir(), "knock.html")
			lab.Must(t, os.WriteFile(file, []byte(v.keygen("page")+"\n"), 0o644))
			token := v.keygen("new", "phone", "--allow", "ssh", "--for-browser")
			v.browser.Go("file://" + file + "#" + token)
			v.reads("The token of the link is below")
			if got := v.browser.Run("return location.href"); strings.Contains(got, token) {
				t.Errorf("the token is still in the address")
			}
			v.fill("hosts", "192.0.2.1 2001:db8::1")
			v.browser.Run("document.getElementById('keep').click(); return ''")
			v.fill("new", "a passphrase of words")
			v.fill("again", "a passphrase of words")
			v.press("Add")
			v.reads("gw is kept in this browser")
			v.shots("added")

			v.want(false, "192.0.2.2", "192.0.2.1", "before the knock")
			v.press("Open ssh")
			v.reads("ssh is open: connect within")
			v.want(true, "192.0.2.2", "192.0.2.1", "after the knock")
			v.want(true, "2001:db8::2", "2001:db8::1", "after the knock")
			v.want(false, "192.0.2.3", "192.0.2.1", "a stranger")
			if n := v.granted("phone"); n != 2 {
				t.Errorf("%d grants, want one for each family", n)
			}
			v.shots("open")

			v.browser.Go("file://" + file)
			v.reads("Passphrase of this page")
			if got := v.browser.Run("return JSON.stringify(localStorage)"); strings.Contains(got, token[5:40]) {
				t.Error("the token is stored as it is")
			}
			v.fill("passphrase", "another passphrase")
			v.press("Unlock")
			v.reads("Wrong passphrase")
			v.fill("passphrase", "a passphrase of words")
			v.press("Unlock")
			v.reads("Unlocked")
			v.press("Close ssh")
			v.reads("ssh is closed for new connections")
			v.want(false, "192.0.2.2", "192.0.2.1", "after the close")

			v.keygen("revoke", "phone")
			v.press("Open ssh")
			v.reads("No answer")
			v.want(false, "192.0.2.2", "192.0.2.1", "with a revoked key")
			v.shots("silent")
		})
	}
}

// shots writes pictures of the page at two widths into the directory that SALLYPORT_SHOTS names.
func (v *view) shots(when string) {
	dir := os.Getenv("SALLYPORT_SHOTS")
	if dir == "" {
		return
	}
	for width, name := range map[int]string{360: "360", 1200: "1200"} {
		v.browser.Resize(width, 900)
		v.browser.Shot(filepath.Join(dir, v.browser.Name()+"-"+when+"-"+name+".png"))
	}
}
