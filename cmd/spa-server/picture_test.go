package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

// screen is a running spa-server watch at a terminal.
type screen struct {
	*lab.Terminal
	cmd *exec.Cmd

	mu   sync.Mutex
	sent bytes.Buffer
}

// picture starts spa-server watch at a terminal of 80 columns.
func (g *gateway) picture(dir string, env ...string) *screen {
	g.t.Helper()
	terminal := lab.Value(lab.NewTerminal())(g.t)
	s := &screen{Terminal: terminal, cmd: exec.Command(filepath.Join(bin, "spa-server"), "watch", "--config", dir)}
	s.cmd.Env = append(s.cmd.Environ(), append([]string{"TERM=xterm-256color"}, env...)...)
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = s.Program, s.Program, s.Program
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	lab.Must(g.t, s.Resize(80, 24))
	lab.Must(g.t, s.cmd.Start())
	g.t.Cleanup(func() {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.Close()
		if g.t.Failed() {
			g.t.Logf("the terminal got %q", s.bytes())
		}
	})
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := s.User.Read(b)
			s.mu.Lock()
			s.sent.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// bytes returns all that reached the terminal.
func (s *screen) bytes() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent.String()
}

// shows waits until a text reached the terminal.
func (g *gateway) shows(s *screen, text string) {
	g.t.Helper()
	lab.Eventually(g.t, fmt.Sprintf("%q on the screen", text), func() bool { return strings.Contains(s.bytes(), text) })
}

// TestPicture: the live view shows grants, decisions and a server that has gone, follows the terminal's size, ends with
// q, and leaves the terminal as it was.
func TestPicture(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	for _, env := range []string{"NO_COLOR=", "NO_COLOR=yes"} {
		s := g.picture(g.dir, env)
		before := lab.Value(s.Settings())(t)
		g.shows(s, "guard in place")
		g.mustOpen()
		g.shows(s, "alice")
		g.shows(s, "granted alice ssh from 192.0.2.2")
		lab.Must(t, s.Resize(20, 10))
		g.shows(s, "gw at 192.…")
		s.User.WriteString("q")
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("after q: %v\n%q", err, s.bytes())
		}
		if after, err := s.Settings(); err != nil || after != before {
			t.Errorf("the terminal is left in another state: %v", err)
		}
		if coloured := strings.Contains(s.bytes(), "\x1b[1;31m") || strings.Contains(s.bytes(), "\x1b[32m"); coloured !=
			(env == "NO_COLOR=") {
			t.Errorf("%s: colours %v\n%q", env, coloured, s.bytes())
		}
	}
	s := g.picture(g.dir)
	g.shows(s, "guard in place")
	g.server.stop(syscall.SIGKILL)
	g.shows(s, "no answer")
	g.start()
	s.Resize(81, 24)
	s.User.WriteString("\x03")
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v\n%q", err, s.bytes())
	}
}

// TestTakenOverPicture: whatever a server sends, the terminal gets none of its control characters.
func TestTakenOverPicture(t *testing.T) {
	const hostile = "a\x1b]52;c;QQ==\x07\x1b[9;9H\u202eb\u2066\u2028\u009b\u200b\x7f"
	g := &gateway{t: t}
	s := g.picture(takenOver(t, filled(t, hostile, false)))
	g.shows(s, "a?]52;c;QQ==?")
	for _, sequence := range []string{"\x1b]52", "\x1b[9;9H", "\u202e", "\u2066", "\u2028", "\u009b", "\u200b"} {
		if strings.Contains(s.bytes(), sequence) {
			t.Errorf("the terminal gets %q:\n%q", sequence, s.bytes())
		}
	}
}
