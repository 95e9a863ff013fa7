package stage

import (
	"bufio"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestServerThatDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: filepath.Join(dir, "ready")})
	lab.Must(t, err)
	ready.Close() // as when the process ends
	if err := new(Server).awaitReady(ready); err == nil {
		t.Error("a server that has ended counts as ready")
	}
}

func TestServerThatStopsBadly(t *testing.T) {
	for _, test := range []struct{ script, want string }{
		{"trap 'exit 3' TERM; echo up; while :; do read x; done", "stopped badly: exit status 3"},
		{"trap 'exit 0' TERM; echo up; while :; do read x; done", ""},
	} {
		cmd := exec.Command("sh", "-c", test.script)
		up := lab.Value(cmd.StdoutPipe())(t)
		hold := lab.Value(cmd.StdinPipe())(t)
		defer hold.Close()
		lab.Must(t, cmd.Start())
		_, err := bufio.NewReader(up).ReadString('\n')
		lab.Must(t, err)
		s := &Server{cmd: cmd, ended: make(chan struct{})}
		go func() {
			s.err = cmd.Wait()
			close(s.ended)
		}()
		got := ""
		if err := s.Stop(t.Context()); err != nil {
			got = err.Error()
		}
		if test.want == "" && got != "" || !strings.HasSuffix(got, test.want) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
