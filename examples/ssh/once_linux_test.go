package ssh

import (
	"os"
	"testing"

	"sallyport/spa/lab"
)

// TestOnce: with once = true each ssh has its one connection, and a ControlMaster carries further sessions through it
// while the door is shut to everyone else at the same address.
func TestOnce(t *testing.T) {
	lab.NeedRoot(t) // sshd changes its user
	bin := lab.Programs(t)
	for name, flags := range map[string][]string{"joined": nil, "fdpass": {"--fdpass"}} {
		t.Run(name, func(t *testing.T) {
			s := newSession(t, bin, "service.ssh.once=true")
			s.dark()
			s.configure(append([]string{"--host", "gw"}, flags...)...)
			t.Run("ssh", s.ssh)
			s.dark()
			t.Run("scp", s.scp)
			s.dark()
			t.Run("master", s.master)
		})
	}
}

// master opens a ControlMaster, and two sessions through it.
func (s *session) master(t *testing.T) {
	control := []string{"-F", s.file("config"), "-o", "ControlPath=" + s.file("control")}
	cmd := s.command("ssh", append(control, "-N", "-o", "ControlMaster=yes", "gw")...)
	lab.Must(t, s.gateway.Client.Start(cmd))
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	lab.Eventually(t, "the master's socket", func() bool {
		_, err := os.Stat(s.file("control"))
		return err == nil
	})
	s.dark()
	for range 2 {
		if out := s.run(t, "ssh", append(control, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", "gw",
			"echo through the master")...); out != "through the master\n" {
			t.Errorf("got %q", out)
		}
	}
	s.dark()
}
