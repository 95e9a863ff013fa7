package check

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// TestCheckRunning: each problem that the running server reports is one finding, with commands.
func TestCheckRunning(t *testing.T) {
	c := initialised(t, nil, keys.Client{RequireSource: true})
	alice := control.LeftOut{Client: "alice", Why: "it was bad"} // whose file is correct now
	if found := checkRunning(c,
		&control.Status{LeftOut: []control.LeftOut{{Client: "bob", Why: "it is bad"}}}); len(found) != 0 {
		t.Errorf("got %+v, want nothing", found)
	}
	for name, test := range map[string]struct {
		status control.Status
		want   Severity
		says   []string
	}{
		"moved": {control.Status{Audit: control.Audit{File: "a log", Moved: "gone",
			Mend: "systemctl restart spa-server"}}, Problem, []string{"a log", "gone", "restart"}},
		"lost": {control.Status{Audit: control.Audit{File: "a log", Lost: 7, LostAt: time.Now(), LostWhy: "full"}},
			Problem, []string{"a log", "7", "full", "df -h"}},
		"unkept": {control.Status{Firewall: control.Firewall{Unkept: true}}, Warning,
			[]string{"guard", "spa-keeper, has ended", "restart"}},
		"not taken": {control.Status{LeftOut: []control.LeftOut{alice}}, Problem,
			[]string{"alice.toml", "it was bad", "reload"}},
	} {
		found := checkRunning(c, &test.status)
		if len(found) != 1 || !says(found, test.want, test.says) {
			t.Errorf("%s: got %+v, want a %q that says %q", name, found, test.want, test.says)
		}
		pasteable(t, found)
	}
}

// TestAdviceOfOurOwn: a server that was taken over chooses none of the commands that root pastes.
func TestAdviceOfOurOwn(t *testing.T) {
	const planted = "sh /tmp/planted"
	c := initialised(t, nil, keys.Client{RequireSource: true})
	var s control.Status
	lab.Fill(&s, planted)
	s.LeftOut = []control.LeftOut{{Client: "alice", Why: planted}}
	found := checkRunning(c, &s)
	if len(found) < 4 {
		t.Errorf("got only %+v", found)
	}
	for _, f := range found {
		if strings.Contains(f.Advice, planted) {
			t.Errorf("%s: the advice is %q", f.Subject, f.Advice)
		}
	}
	pasteable(t, found)
}

// TestCheckOpenable: a file is reported that neither root without its file rights nor the server's user can open or
// make.
func TestCheckOpenable(t *testing.T) {
	lab.NeedRoot(t)
	const mallory, server = 64124, 64123
	type owned struct {
		uid, gid int
		mode     os.FileMode
	}
	fine := owned{0, server, 0o750}
	for name, test := range map[string]struct {
		dir  owned
		make func(path string) error // nil: there is no file
		file owned
		bad  bool
	}{
		"none, in root's directory":         {dir: fine},
		"none, in the server's":             {dir: owned{server, server, 0o700}},
		"none, in another's":                {dir: owned{mallory, server, 0o750}, bad: true},
		"root's":                            {fine, touch, owned{0, 0, 0o600}, false},
		"the server's":                      {fine, touch, owned{server, server, 0o600}, false},
		"for the server's group":            {fine, touch, owned{mallory, server, 0o660}, false},
		"for its group to read":             {fine, touch, owned{mallory, server, 0o640}, true},
		"another's":                         {fine, touch, owned{mallory, mallory, 0o600}, true},
		"root's, not to be written":         {fine, touch, owned{0, 0, 0o400}, true},
		"root's, in the server's directory": {owned{server, server, 0o700}, touch, owned{0, 0, 0o600}, true},
		"a socket is replaced":              {fine, bind, owned{mallory, mallory, 0o600}, false},
	} {
		c := initialised(t, nil, keys.Client{RequireSource: true})
		h := quietHost()
		h.accounts = func(string) (uid, gid int, ok bool) { return server, server, true }
		c.State = filepath.Join(t.TempDir(), "state")
		lab.Must(t, os.Mkdir(c.State, 0o700))
		paths := []string{filepath.Join(c.State, setup.LockFile), filepath.Join(c.State, "audit.jsonl")}
		c.Audit.File = paths[1]
		for _, path := range paths {
			if test.make != nil {
				lab.Must(t, test.make(path))
				own(t, path, test.file.uid, test.file.gid, test.file.mode)
			}
		}
		own(t, c.State, test.dir.uid, test.dir.gid, test.dir.mode)
		found := checkOpenable(c, h)
		for _, path := range paths {
			i := slices.IndexFunc(found, func(f Finding) bool { return f.Subject == path })
			if (i >= 0) != test.bad {
				t.Errorf("%s: %s is named %v, want %v: %+v", name, path, i >= 0, test.bad, found)
			}
		}
		pasteable(t, found)
		if h.uid = 1000; len(checkOpenable(c, h)) != 0 {
			t.Errorf("%s: an ordinary user gets %+v", name, checkOpenable(c, h))
		}
	}
}

func touch(path string) error { return os.WriteFile(path, nil, 0o600) }

// bind leaves a socket on which nothing listens.
func bind(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return l.Close()
}

// TestReadAround: kernel settings are read in the gateway's namespace.
func TestReadAround(t *testing.T) {
	h := lab.New(t, "gateway")[0]
	for _, value := range []int{2, 1} {
		lab.Must(t, h.Sysctl("net.ipv4.tcp_syncookies", []string{1: "1", 2: "2"}[value]))
		var got around
		if err := h.Do(func() error { got = readAround(); return nil }); err != nil || got.cookies != value {
			t.Errorf("got %+v (%v), want cookies to be %d", got, err, value)
		}
	}
}
