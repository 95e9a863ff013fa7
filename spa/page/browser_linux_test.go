package page

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/spa/capture"
	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// view is the page in a browser, on a client's host beside a gateway that takes knocks from browsers.
type view struct {
	*testing.T
	browser *lab.Browser
	gw      *lab.Gateway

	mu     sync.Mutex
	frames [][]byte // the checks that arrived
}

func newView(t *testing.T, bin string, start func(testing.TB, *lab.Host) *lab.Browser) *view {
	gw := lab.NewGateway(t, bin, "ssh=tcp/22", "web=tcp/80")
	v := &view{T: t, gw: gw}
	v.edit("# browser = true", "browser = true")
	v.edit(`for = "30s"`, `for = "10m"`)
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

// listen collects the packets of browsers that arrive at the gateway.
func (v *view) listen() {
	v.Helper()
	var s *capture.Sniffer
	lab.Must(v, v.gw.Host.Do(func() (err error) {
		s, err = capture.Listen(capture.Config{Ports: []uint16{62201}, MinLen: 168, MaxLen: 256, Browser: true})
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			p, err := s.Read()
			if err != nil {
				return
			}
			if p.Frame != nil {
				v.mu.Lock()
				v.frames = append(v.frames, bytes.Clone(p.Frame))
				v.mu.Unlock()
			}
		}
	}()
	v.Cleanup(func() {
		s.Close()
		<-done
	})
}

// wantReplaysIgnored sends every check that the browser has sent so far again, from its address and from a stranger's:
// none is answered, and none opens anything.
func (v *view) wantReplaysIgnored() {
	v.Helper()
	v.mu.Lock()
	frames := v.frames
	v.mu.Unlock()
	before := v.granted("phone")
	for _, from := range []string{"192.0.2.2", "192.0.2.3"} {
		var conn net.PacketConn
		lab.Must(v, v.gw.Client.Do(func() (err error) {
			conn, err = net.ListenPacket("udp", from+":0")
			return err
		}))
		defer conn.Close()
		for _, frame := range frames {
			_, err := conn.WriteTo(frame, &net.UDPAddr{IP: net.ParseIP("192.0.2.1"), Port: 62201})
			lab.Must(v, err)
		}
		lab.Must(v, conn.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
		var buf [512]byte
		if n, _, err := conn.ReadFrom(buf[:]); err == nil {
			v.Errorf("a replay from %s is answered: %x", from, buf[:n])
		}
		v.want(false, from, "192.0.2.1", "after a replay")
	}
	if len(frames) < 4 || v.granted("phone") != before {
		v.Errorf("%d checks were seen, and %d grants more", len(frames), v.granted("phone")-before)
	}
}

// wantVectors checks the page's cryptography in the browser by every vector of the protocol.
func (v *view) wantVectors(checks string) {
	v.Helper()
	v.browser.Go("file://" + checks)
	done := 0
	for _, path := range lab.Value(filepath.Glob("../testdata/*/*.txt"))(v) {
		got := v.browser.Run(`const v = checks.parseVector(args[0]); const check = checks.checkOf(v);
			return check ? 'done' + check(v) : ''`, string(lab.Value(os.ReadFile(path))(v)))
		if got != "" {
			done++
		}
		if got != "" && got != "done" {
			v.Errorf("%s: %s: %s", v.browser.Name(), path, got)
		}
	}
	if got := v.browser.Run("return checks.checkSipHash()"); got != "" || done < 150 {
		v.Errorf("SipHash: %q; %d vectors", got, done)
	}
}

const passphrase = "a passphrase of words"

// add gives the page a token by its link, and lets the browser keep it.
func (v *view) add(page, token string) {
	v.Helper()
	v.browser.Go(page + "#" + token)
	v.reads("The token of the link is below")
	if got := v.browser.Run("return location.href"); strings.Contains(got, token) {
		v.Errorf("the token is still in the address")
	}
	v.fill("hosts", "192.0.2.1 2001:db8::1")
	v.browser.Run("document.getElementById('keep').click(); return ''")
	v.fill("new", passphrase)
	v.fill("again", passphrase)
	v.press("Add")
	v.reads("gw is kept in this browser")
	if got := v.browser.Run("return JSON.stringify(localStorage)"); !strings.Contains(got, "sallyport") ||
		strings.Contains(got, token[5:40]) {
		v.Errorf("the browser keeps %.200s", got)
	}
}

func (v *view) unlock(page string) {
	v.Helper()
	v.browser.Go(page)
	v.reads("Passphrase of this page")
	v.fill("passphrase", passphrase)
	v.press("Unlock")
	v.reads("Unlocked")
}

// TestPageInBrowsers: in each browser the page takes a token from its link, opens a port for its own addresses in both
// families with one grant each, keeps the token sealed, closes the port, and gets no answer with a revoked key. Its
// checks sent again get nothing, and its cryptography is that of the vectors. With a
// fleet's token it does the same. All parts share one start of the browser.
func TestPageInBrowsers(t *testing.T) {
	lab.NeedRoot(t)
	bin := lab.Programs(t)
	dir, npm := sources(t)
	checks := filepath.Join(dir, "checks.html")
	npm("run", "build", checks)
	for name, start := range map[string]func(testing.TB, *lab.Host) *lab.Browser{"chromium": lab.Chromium,
		"firefox": lab.Firefox} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newView(t, bin, start)
			v.listen()
			file := filepath.Join(t.TempDir(), "knock.html")
			lab.Must(t, os.WriteFile(file, []byte(v.keygen("page")+"\n"), 0o644))
			v.journey("file://" + file)
			v.wantReplaysIgnored()
			v.wantVectors(checks)
			v.wantSite()
			v.refusals("file://" + file)
			v.hostile("file://" + file)
			v.windows("file://" + file)
			v.halfDead("file://" + file)
			v.keyboard("file://" + file)
			v.seen("file://" + file)
			w, first, token := v.second(bin)
			v.two("file://"+file, w)
			v.fleet("file://"+file, w, first, token)
			v.bare("file://" + file)
			v.unplugged("file://" + file)
		})
	}
}

func (v *view) journey(page string) {
	v.Helper()
	v.add(page, v.keygen("new", "phone", "--allow", "ssh", "--for-browser"))
	v.shots("added")
	v.want(false, "192.0.2.2", "192.0.2.1", "before the knock")
	v.press("Open ssh")
	v.reads("ssh is open: connect within")
	v.want(true, "192.0.2.2", "192.0.2.1", "after the knock")
	v.want(true, "2001:db8::2", "2001:db8::1", "after the knock")
	v.want(false, "192.0.2.3", "192.0.2.1", "a stranger")
	if n := v.granted("phone"); n != 2 {
		v.Errorf("%d grants, want one for each family", n)
	}
	v.shots("open")
	v.browser.Go(page)
	v.reads("Passphrase of this page")
	v.fill("passphrase", "another passphrase")
	v.press("Unlock")
	v.reads("Wrong passphrase")
	v.unlock(page)
	v.press("Close ssh")
	v.reads("ssh is closed for new connections")
	v.want(false, "192.0.2.2", "192.0.2.1", "after the close")
	v.wantKept(page)
}

// wantKept: what is kept is not lost to another token for the same client, to another window or to damage.
func (v *view) wantKept(page string) {
	v.Helper()
	before := v.browser.Run("return localStorage.getItem('sallyport')")
	v.browser.Run("window.confirm = () => false; location.hash = args[0]; return ''", v.keygen("rotate", "phone"))
	v.reads("The token of the link is below")
	v.fill("hosts", "192.0.2.1")
	v.press("Add")
	v.reads("gw was not replaced")
	v.browser.Run("dispatchEvent(new StorageEvent('storage', { key: 'sallyport' })); return ''")
	v.reads("Another window changed what this browser keeps")
	if v.browser.Run("return localStorage.getItem('sallyport')") != before {
		v.Error("what is kept has changed")
	}
	v.browser.Run("localStorage.setItem('sallyport', '!'); return ''")
	v.browser.Go(page)
	v.fill("passphrase", passphrase)
	v.press("Unlock")
	v.reads("Wrong passphrase, or what this browser keeps is damaged")
	v.browser.Run("localStorage.setItem('sallyport', args[0]); return ''", before)
}

// refusals: Chromium shows a refusal, and no browser shows anything else for a key that was revoked than silence.
func (v *view) refusals(page string) {
	v.Helper()
	v.unlock(page)
	if v.browser.Name() == "chromium" {
		v.keygen("set", "phone", "allow=web")
		v.press("Open ssh")
		v.reads("The gateway refused.")
	}
	v.keygen("revoke", "phone")
	v.press("Open ssh")
	v.reads("No answer. The likeliest reasons first:")
	v.want(false, "192.0.2.2", "192.0.2.1", "with a revoked key")
	v.shots("silent")
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
