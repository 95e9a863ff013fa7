package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"

	"kernel.org/pub/linux/libs/security/libcap/cap"
)

const dropped = `Name:	spa-server
Uid:	990	990	990	990
Gid:	991	991	991	991
Groups:	 
CapInh:	0000000000000000
CapPrm:	0000000000001000
CapEff:	0000000000001000
CapBnd:	0000000000000000
CapAmb:	0000000000000000
NoNewPrivs:	1
`

var wanted = remains{uid: 990, gid: 991, kept: setOf(cap.NET_ADMIN), securebits: secured}

func TestVerifyNamesWhatStuck(t *testing.T) {
	for _, test := range []struct{ name, from, to, want string }{
		{"nothing", "", "", ""},
		{"real uid", "990	990	990	990", "0	990	990	990", "Uid"},
		{"saved uid", "990	990	990	990", "990	990	0	990", "Uid"},
		{"gid", "991	991	991	991", "991	991	991	0", "Gid"},
		{"groups", "Groups:	 ", "Groups:	4 5 ", "Groups"},
		{"inheritable", "CapInh:	0000000000000000", "CapInh:	0000000000001000", "CapInh"},
		{"permitted", "CapPrm:	0000000000001000", "CapPrm:	0000000000003000", "CapPrm"},
		{"effective", "CapEff:	0000000000001000", "CapEff:	0000000000000000", "CapEff"},
		{"bounding", "CapBnd:	0000000000000000", "CapBnd:	0000000000001000", "CapBnd"},
		{"ambient", "CapAmb:	0000000000000000", "CapAmb:	0000000000001000", "CapAmb"},
		{"no_new_privs", "NoNewPrivs:	1", "NoNewPrivs:	0", "NoNewPrivs"},
		{"line missing", "CapAmb:	0000000000000000\n", "", "no line CapAmb"},
		{"not a number", "CapAmb:	0000000000000000", "CapAmb:	x", "invalid syntax"},
		{"not an id", "991	991	991	991", "991	991	991	x", "invalid syntax"},
	} {
		dir := t.TempDir()
		text := dropped
		if test.from != "" {
			text = strings.Replace(dropped, test.from, test.to, 1)
		}
		writeTask(t, dir, "1", dropped)
		writeTask(t, dir, "2", text) // the second thread: each is checked
		err := verifyThreads(dir, wanted)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

func TestVerifyNeedsThreads(t *testing.T) {
	if err := verifyThreads(t.TempDir(), wanted); err == nil || !strings.Contains(err.Error(), "no thread") {
		t.Errorf("got %v, want an error", err)
	}
}

// TestVerifyWithoutTheEnded: a thread that ends during the check does not count, and does not stop it.
func TestVerifyWithoutTheEnded(t *testing.T) {
	dir := t.TempDir()
	lab.Must(t, os.Mkdir(filepath.Join(dir, "1"), 0o755))
	lab.Must(t, os.Symlink("gone", filepath.Join(dir, "1", "status")))
	if err := verifyThreads(dir, wanted); err == nil || !strings.Contains(err.Error(), "no thread") {
		t.Errorf("all have ended: got %v", err)
	}
	writeTask(t, dir, "2", dropped)
	if err := verifyThreads(dir, wanted); err != nil {
		t.Errorf("one is left: %v", err)
	}
}

func TestSealed(t *testing.T) {
	if err := sealed(secured, secured, 0); err != nil {
		t.Error(err)
	}
	if err := sealed(secured&^1, secured, 0); err == nil || !strings.Contains(err.Error(), "securebits") {
		t.Errorf("got %v, want an error on the securebits", err)
	}
	if err := sealed(secured, secured, 1); err == nil || !strings.Contains(err.Error(), "dumpable") {
		t.Errorf("got %v, want an error on dumpable", err)
	}
}

func TestMapHolds(t *testing.T) {
	for _, test := range []struct {
		text string
		id   int
		want bool
	}{
		{"         0          0 4294967295\n", 990, true}, // more than an int holds on 32-bit machines
		{"         0          0 4294967295\n", Unnamed, true},
		{"         0       1000          1\n", 990, false},
		{"         0       1000          1\n", 0, true},
		{"0 1000 1\n1 100000 65536\n", 990, true},
		{"0 1000 1\n1 100000 65536\n", 65536, true},
		{"0 1000 1\n1 100000 65536\n", 65537, false},
		{"5 1000 10\n", 4, false},
		{"", 0, false},
		{"what\n", 0, false},
		{"0 1000 1\nwhat\n", 0, false},
	} {
		if got := mapHolds(test.text, test.id); got != test.want {
			t.Errorf("%q: %d: got %v, want %v", test.text, test.id, got, test.want)
		}
	}
}

func writeTask(t *testing.T, dir, tid, text string) {
	t.Helper()
	lab.Must(t, os.Mkdir(filepath.Join(dir, tid), 0o755))
	lab.Must(t, os.WriteFile(filepath.Join(dir, tid, "status"), []byte(text), 0o644))
}
