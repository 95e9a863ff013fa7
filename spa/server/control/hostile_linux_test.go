package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"sallyport/spa/lab"
)

// playing is a server that answers every client with these bytes, repeatedly if again is set.
func playing(t testing.TB, answer []byte, again bool) (dir string) {
	t.Helper()
	return hostileServer(t, func(conn net.Conn) {
		for {
			if _, err := conn.Write(answer); err != nil || !again {
				return
			}
		}
	})
}

// asked returns the result of a request to a server.
func asked(t testing.TB, dir string, command Command, each func(Reply) error) error {
	t.Helper()
	c := lab.Value(Dial(dir))(t)
	defer c.Close()
	return c.Ask(t.Context(), Request{Command: command}, each)
}

// unprintable returns a text in a value that must not reach a terminal, or "".
func unprintable(v reflect.Value) string {
	if s, ok := v.Interface().(fmt.Stringer); ok && strings.ContainsFunc(s.String(), notPrintable) {
		return s.String()
	}
	switch v.Kind() {
	case reflect.String:
		if strings.ContainsFunc(v.String(), notPrintable) {
			return v.String()
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return unprintable(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				continue
			}
			if s := unprintable(v.Field(i)); s != "" {
				return s
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if s := unprintable(v.Index(i)); s != "" {
				return s
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if s := unprintable(key); s != "" {
				return s
			}
		}
	}
	return ""
}

func notPrintable(r rune) bool { return !unicode.IsPrint(r) }

const hostile = "a\x1b[2J\n\r\t\u202eb\u2066\u2028\u009b\u200b\x7f"

// TestHostileTexts: no field of a server's answer can end a line, move the cursor, or reverse the text.
func TestHostileTexts(t *testing.T) {
	var reply Reply
	lab.Fill(&reply, hostile)
	reply.Done = false
	line, err := json.Marshal(reply)
	lab.Must(t, err)
	if unprintable(reflect.ValueOf(reply)) == "" {
		t.Fatal("nothing was filled in")
	}
	dir := playing(t, append(line, '\n'), false)
	got := 0
	err = asked(t, dir, CommandStatus, func(r Reply) error {
		got++
		r.Error = strings.ReplaceAll(r.Error, "\n", "") // it may have line breaks
		if s := unprintable(reflect.ValueOf(r)); s != "" {
			t.Errorf("%q is handed on", s)
		}
		return nil
	})
	if got != 1 || !errors.Is(err, errHungUp) {
		t.Errorf("got %d replies, %v", got, err)
	}
}

// TestPrintableStays: printable text from a server is passed on unchanged.
func TestPrintableStays(t *testing.T) {
	filled := func() *Reply {
		var r Reply
		lab.Fill(&r, "gw")
		r.Status.Decided = map[string]uint64{"granted": 3, "denied: no": 2, "": 1}
		r.Revoked.Ended[0].Source = netip.MustParseAddr("192.0.2.2")
		r.Revoked.Ended[1].Source = netip.MustParseAddr("2001:db8::2")
		r.Decision.From = netip.AddrPort{}
		return &r
	}
	got := filled()
	if got.clean(); !reflect.DeepEqual(got, filled()) {
		t.Errorf("got %+v, want %+v", got, filled())
	}
}

// TestLongWatch: a watch never ends, however many decisions there are.
func TestLongWatch(t *testing.T) {
	great := []byte(`{"decision":{"reason":"` + strings.Repeat("x", maxDecision*9/10) + `"}}` + "\n")
	for name, test := range map[string]struct {
		lines []byte
		most  int // in an answer that ends
	}{
		"many decisions":  {bytes.Repeat([]byte("{}\n"), 10000), maxReplies},
		"great decisions": {great, maxAnswer / len(great)},
	} {
		enough, n := errors.New("enough"), 0
		err := asked(t, playing(t, test.lines, true), CommandWatch, func(Reply) error {
			if n++; n > test.most+1 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Errorf("%s: after %d: %v", name, n, err)
		}
	}
}

// TestHostileError: an error keeps its line breaks, but nothing else that a terminal would act on.
func TestHostileError(t *testing.T) {
	dir := playing(t, []byte(`{"done":true,"error":"a\nb\u2028","hint":"c\nd"}`+"\n"), false)
	var denied *Denied
	if err := asked(t, dir, CommandStatus, nil); !errors.As(err, &denied) ||
		*denied != (Denied{Text: "a\nb?", Hint: "c?d"}) {
		t.Errorf("got %#v", err)
	}
}

// TestEndlessAnswer: a server cannot exhaust its client's memory.
func TestEndlessAnswer(t *testing.T) {
	grant := []byte(`{"grant":{"client":"` + strings.Repeat("x", 1<<20) + `"}}` + "\n")
	long := bytes.Repeat([]byte("x"), 1<<20)
	for name, test := range map[string]struct {
		answer  []byte
		command Command
	}{
		"grants":                   {grant, CommandGrants},
		"a line":                   {long, CommandStatus},
		"a decision":               {long, CommandWatch},
		"replies that say nothing": {bytes.Repeat([]byte("{}\n"), 1000), CommandReload},
	} {
		t.Run(name, func(t *testing.T) {
			dir := playing(t, test.answer, true)
			ended := make(chan error, 1)
			go func() { ended <- asked(t, dir, test.command, func(Reply) error { return nil }) }()
			select {
			case err := <-ended:
				if !errors.Is(err, errEndless) {
					t.Errorf("got %v", err)
				}
			case <-time.After(lab.Patience):
				t.Error("it keeps running")
			}
		})
	}
}

// FuzzAnswer: any answer is either passed on in printable lines, or refused.
func FuzzAnswer(f *testing.F) {
	var reply Reply
	lab.Fill(&reply, "gw")
	line := lab.Value(json.Marshal(reply))(f)
	f.Add(line)
	f.Add([]byte(`{"done":true}` + "\n"))
	f.Add([]byte(`{"decision":{"reason":"\u001b[2J\u202e"}}` + "\n" + `{"grant":{"source":"fe80::1%\u001b[2J"}}` + "\n"))
	f.Add([]byte(`{"done":true,"error":"a\nb\u2028","hint":"\r"}` + "\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		err := asked(t, playing(t, answer, false), CommandStatus, func(r Reply) error {
			if s := unprintable(reflect.ValueOf(r)); s != "" && r.Error == "" {
				t.Errorf("%q is handed on", s)
			}
			return nil
		})
		var denied *Denied
		if errors.As(err, &denied) && strings.ContainsFunc(denied.Hint+strings.ReplaceAll(denied.Text, "\n", ""),
			notPrintable) {
			t.Errorf("%q is handed on", denied)
		}
	})
}

// announce listens on a socket and tells each client its path.
func announce(t *testing.T, path string) {
	t.Helper()
	lab.ServeUnix(t, path, func(conn net.Conn) { conn.Write([]byte(path + "\n")) })
}

// swap exchanges two names continuously until the test ends.
func swap(t *testing.T, one, other string) {
	t.Cleanup(lab.Repeat(func() {
		unix.Renameat2(unix.AT_FDCWD, one, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE)
	}))
}

// TestSwappedSocket: an attacker who owns the directory cannot mislead root by swapping the socket for a link at the
// right moment.
func TestSwappedSocket(t *testing.T) {
	lab.NeedRoot(t)
	dir, elsewhere := t.TempDir(), t.TempDir()
	victim := filepath.Join(elsewhere, SocketName)
	for _, path := range []string{victim, filepath.Join(dir, SocketName)} {
		announce(t, path)
	}
	lab.Must(t, os.Symlink(victim, filepath.Join(dir, "link")))
	held := lab.Value(os.OpenFile(dir, unix.O_PATH, 0))(t)
	defer held.Close()
	swap(t, filepath.Join(dir, SocketName), filepath.Join(dir, "link"))
	reached := 0
	for range 5000 {
		if err := (&Listener{dir: held}).give(64123); err != nil && !errors.Is(err, errNoSocket) {
			t.Fatal(err)
		}
		c, err := Dial(dir)
		if err != nil {
			continue
		}
		line, err := bufio.NewReader(c.conn).ReadString('\n')
		c.Close()
		if err != nil || line == victim+"\n" {
			t.Fatalf("got the socket %q, %v", line, err)
		}
		reached++
	}
	var st unix.Stat_t
	if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 {
		t.Errorf("the socket belongs to user %d now, %v", st.Uid, err)
	}
	if reached == 0 {
		t.Error("its own socket was never asked")
	}
}

// TestPlantedSocket: an attacker who owns the directory can make root neither connect to another user's socket nor give
// one away.
func TestPlantedSocket(t *testing.T) {
	lab.NeedRoot(t)
	dir := t.TempDir()
	lab.Must(t, os.Chown(dir, 64123, 64123))
	victim := filepath.Join(filepath.Dir(dir), "victim")
	accepted := make(chan struct{}, 10)
	lab.ServeUnix(t, victim, func(net.Conn) { accepted <- struct{}{} })
	path := filepath.Join(dir, SocketName)
	for name, plant := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink(victim, path) },
		"hard link":     func() error { return os.Link(victim, path) },
		"file":          func() error { return os.WriteFile(path, nil, 0o666) },
		"directory":     func() error { return os.Mkdir(path, 0o777) },
		"pipe":          func() error { return unix.Mkfifo(path, 0o666) },
	} {
		lab.Must(t, plant())
		if c, err := Dial(dir); err == nil {
			c.Close()
			t.Errorf("%s: it was asked", name)
		} else if !errors.Is(err, errNoSocket) && name != "symbolic link" {
			t.Errorf("%s: got %v, want %v", name, err, errNoSocket)
		}
		held := lab.Value(os.OpenFile(dir, unix.O_PATH, 0))(t)
		if err := (&Listener{dir: held}).give(64123); err == nil {
			t.Errorf("%s: it was given away", name)
		}
		held.Close()
		lab.Must(t, os.Remove(path))
	}
	var st unix.Stat_t
	if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 {
		t.Errorf("the socket belongs to user %d now, %v", st.Uid, err)
	}
	if len(accepted) != 0 {
		t.Error("another's socket was asked")
	}
}
