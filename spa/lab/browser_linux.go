package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Browser is a headless browser on a host of the lab, driven by the commands of WebDriver. Its methods end the test on
// an error.
type Browser struct {
	t    testing.TB
	name string
	// do sends a command with its parameters and returns the value of the answer.
	do func(c browserCommand, params map[string]any) (json.RawMessage, error)
}

// browserCommand is a command as chromedriver and as Firefox call it.
type browserCommand struct{ method, path, marionette string }

var (
	browserGo     = browserCommand{"POST", "/url", "WebDriver:Navigate"}
	browserRun    = browserCommand{"POST", "/execute/async", "WebDriver:ExecuteAsyncScript"}
	browserShot   = browserCommand{"GET", "/screenshot", "WebDriver:TakeScreenshot"}
	browserResize = browserCommand{"POST", "/window/rect", "WebDriver:SetWindowRect"}
	browserKeys   = browserCommand{"POST", "/actions", "WebDriver:PerformActions"}
	browserYes    = browserCommand{"POST", "/alert/accept", "WebDriver:AcceptAlert"}
	browserNo     = browserCommand{"POST", "/alert/dismiss", "WebDriver:DismissAlert"}
	browserTools  = browserCommand{"POST", "/goog/cdp/execute", ""}
)

// Name returns "chromium" or "firefox".
func (b *Browser) Name() string { return b.name }

func (b *Browser) must(c browserCommand, params map[string]any) json.RawMessage {
	b.t.Helper()
	value, err := b.do(c, params)
	if err != nil {
		b.t.Fatalf("%s: %s: %v", b.name, c.marionette, err)
	}
	return value
}

// Go opens a page.
func (b *Browser) Go(url string) { b.t.Helper(); b.must(browserGo, map[string]any{"url": url}) }

// Resize sets the size of the window.
func (b *Browser) Resize(width, height int) {
	b.t.Helper()
	b.must(browserResize, map[string]any{"width": width, "height": height})
}

// Shot writes what the window shows to a PNG file.
func (b *Browser) Shot(path string) {
	b.t.Helper()
	var text string
	Must(b.t, json.Unmarshal(b.must(browserShot, map[string]any{"full": false}), &text))
	Must(b.t, os.WriteFile(path, Value(base64.StdEncoding.DecodeString(text))(b.t), 0o644))
}

// Run runs the body of an async function in the page, with arguments, and returns what it returns as text.
func (b *Browser) Run(body string, args ...any) string {
	b.t.Helper()
	script := "const done = arguments[arguments.length - 1]; (async (...args) => {" + body + "})(...arguments)" +
		".then((v) => done(String(v)), (e) => done('error: ' + e))"
	if args == nil {
		args = []any{}
	}
	var text string
	Must(b.t, json.Unmarshal(b.must(browserRun, map[string]any{"script": script, "args": args}), &text))
	return text
}

// Keys of WebDriver.
const (
	KeyTab    = "\ue004"
	KeyReturn = "\ue007"
	KeyShift  = "\ue008"
)

// Type presses keys one after the other. Shift stays down until the last.
func (b *Browser) Type(keys string) {
	b.t.Helper()
	var down, up []map[string]string
	for _, key := range keys {
		down = append(down, map[string]string{"type": "keyDown", "value": string(key)})
		if string(key) == KeyShift {
			up = append(up, map[string]string{"type": "keyUp", "value": KeyShift})
			continue
		}
		down = append(down, map[string]string{"type": "keyUp", "value": string(key)})
	}
	b.must(browserKeys, map[string]any{"actions": []any{
		map[string]any{"type": "key", "id": "keyboard", "actions": append(down, up...)}}})
}

// Answer waits for a question that the page asks, and answers it.
func (b *Browser) Answer(yes bool) {
	b.t.Helper()
	command := browserNo
	if yes {
		command = browserYes
	}
	Eventually(b.t, "a question", func() bool {
		_, err := b.do(command, map[string]any{})
		return err == nil
	})
}

// Tool calls a method of Chromium's developer tools and returns its result.
func (b *Browser) Tool(method string, params map[string]any) json.RawMessage {
	b.t.Helper()
	return b.must(browserTools, map[string]any{"cmd": method, "params": params})
}

// scriptLimit is how long a script in a page may run, in milliseconds.
const scriptLimit = 60_000

// Chromium starts Chromium on a host. It ends with the test.
func Chromium(t testing.TB, h *Host) *Browser {
	t.Helper()
	NeedProgram(t, "chromium", "apt-get install chromium")
	driver := NeedProgram(t, "chromedriver", "apt-get install chromium-driver")
	home := t.TempDir()
	startBrowser(t, h, home, driver, "--port=9515")
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return dialIn(h, "127.0.0.1:9515") },
	}}
	base := "http://127.0.0.1:9515"
	do := func(c browserCommand, params map[string]any) (json.RawMessage, error) {
		return webDriver(client, c.method, base+c.path, params)
	}
	Eventually(t, "chromedriver to be ready", func() bool {
		_, err := do(browserCommand{"GET", "/status", "status"}, nil)
		return err == nil
	})
	options := map[string]any{"args": []string{"--headless=new", "--no-sandbox", "--disable-gpu",
		"--disable-dev-shm-usage", "--user-data-dir=" + filepath.Join(home, "profile")}}
	session, err := do(browserCommand{"POST", "/session", "new session"}, map[string]any{"capabilities": map[string]any{
		"alwaysMatch": map[string]any{"goog:chromeOptions": options, "timeouts": map[string]any{"script": scriptLimit}}}})
	Must(t, err)
	var made struct {
		SessionID string `json:"sessionId"`
	}
	Must(t, json.Unmarshal(session, &made))
	base += "/session/" + made.SessionID
	t.Cleanup(func() { _, _ = do(browserCommand{"DELETE", "", "end"}, nil) })
	return &Browser{t, "chromium", do}
}

// webDriver sends a command as HTTP and returns the value of the answer.
func webDriver(client *http.Client, method, url string, params map[string]any) (json.RawMessage, error) {
	var body io.Reader
	if method == "POST" {
		body = bytes.NewReader(Marshal(params))
	}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, errors.New(string(answer.Value))
	}
	return answer.Value, nil
}

// Marshal returns the JSON of a value that has one.
func Marshal(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return data
}

// Firefox starts Firefox on a host, which needs a default route: without one, Firefox makes no connections by WebRTC.
// It ends with the test.
func Firefox(t testing.TB, h *Host) *Browser {
	t.Helper()
	program := NeedProgram(t, "firefox-esr", "apt-get install firefox-esr")
	home := t.TempDir()
	startBrowser(t, h, home, program, "--headless", "--marionette", "--no-remote", "--profile", home)
	m := &marionette{}
	Eventually(t, "Firefox to be ready", func() bool {
		conn, err := dialIn(h, "127.0.0.1:2828")
		if err != nil {
			return false
		}
		m.conn, m.from = conn, bufio.NewReader(conn)
		return true
	})
	t.Cleanup(func() { m.conn.Close() })
	_, err := m.read() // its greeting
	Must(t, err)
	_, err = m.do(browserCommand{marionette: "WebDriver:NewSession"}, map[string]any{})
	Must(t, err)
	_, err = m.do(browserCommand{marionette: "WebDriver:SetTimeouts"}, map[string]any{"script": scriptLimit})
	Must(t, err)
	return &Browser{t, "firefox", m.do}
}

// marionette is the protocol that Firefox speaks without a driver: JSON, each message after its length and a colon.
type marionette struct {
	conn net.Conn
	from *bufio.Reader
	n    int
}

func (m *marionette) do(c browserCommand, params map[string]any) (json.RawMessage, error) {
	m.n++
	message := Marshal([]any{0, m.n, c.marionette, params})
	if _, err := fmt.Fprintf(m.conn, "%d:%s", len(message), message); err != nil {
		return nil, err
	}
	answer, err := m.read()
	if err != nil {
		return nil, err
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(answer, &parts); err != nil || len(parts) != 4 {
		return nil, fmt.Errorf("got %s", answer)
	}
	if string(parts[2]) != "null" {
		return nil, errors.New(string(parts[2]))
	}
	var result struct{ Value json.RawMessage }
	if err := json.Unmarshal(parts[3], &result); err == nil && result.Value != nil {
		return result.Value, nil
	}
	return parts[3], nil
}

func (m *marionette) read() ([]byte, error) {
	length, err := m.from.ReadString(':')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil {
		return nil, err
	}
	message := make([]byte, n)
	_, err = io.ReadFull(m.from, message)
	return message, err
}

// startBrowser starts a program with a home of its own, which is killed with all that it started when the test ends.
func startBrowser(t testing.TB, h *Host, home, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, "XDG_RUNTIME_DIR="+home)
	Must(t, h.Start(cmd))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// dialIn opens a TCP connection on a host.
func dialIn(h *Host, addr string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		conn, err = net.Dial("tcp", addr)
		return err
	})
	return conn, err
}
