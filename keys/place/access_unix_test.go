//go:build unix

package place

import (
	"io/fs"
	"testing"
)

func TestAccess(t *testing.T) {
	const root, spa, alice, mallory = 0, 998, 1000, 1001
	for name, c := range map[string]struct {
		a    access
		most fs.FileMode
		mend string // for a file "f" whose directory has the owner "o:g"; empty: nothing to fix
	}{
		"private":              {access{0o600, alice, alice, alice, alice, alice, false}, 0o600, ""},
		"read-only":            {access{0o400, alice, alice, alice, alice, alice, false}, 0o600, ""},
		"for the service":      {access{0o640, root, spa, root, spa, spa, false}, 0o640, ""},
		"of the service":       {access{0o600, spa, spa, spa, spa, root, false}, 0o640, ""},
		"of root":              {access{0o600, root, root, alice, alice, alice, false}, 0o600, ""},
		"of the reader":        {access{0o600, alice, alice, root, root, alice, false}, 0o600, ""},
		"of the directory's":   {access{0o600, spa, spa, spa, root, alice, false}, 0o600, ""},
		"root's group":         {access{0o640, root, root, root, spa, root, false}, 0o640, ""},
		"of the service's own": {access{0o600, spa, spa, root, spa, root, true}, 0o640, ""},
		"others read":          {access{0o644, root, spa, root, spa, spa, false}, 0o640, "chmod 640 f"},
		"others write":         {access{0o602, root, spa, root, spa, spa, false}, 0o640, "chmod 640 f"},
		"others search":        {access{0o601, root, spa, root, spa, spa, false}, 0o640, "chmod 640 f"},
		"group writes":         {access{0o660, root, spa, root, spa, spa, false}, 0o640, "chmod 640 f"},
		"group executes":       {access{0o650, root, spa, root, spa, spa, false}, 0o640, "chmod 640 f"},
		"group reads a user's": {access{0o640, alice, alice, alice, alice, alice, false}, 0o600, "chmod 600 f"},
		"another group":        {access{0o640, root, mallory, root, spa, spa, false}, 0o640, "chown o:g f"},
		"another's":            {access{0o600, mallory, spa, root, spa, spa, false}, 0o640, "chown o:g f"},
		"another's, mode":      {access{0o644, mallory, spa, root, spa, spa, false}, 0o640, "chown o:g f && chmod 640 f"},
	} {
		trouble := c.a.trouble(c.most)
		if (trouble != "") != (c.mend != "") {
			t.Errorf("%s: got trouble %q", name, trouble)
		}
		if got := c.a.mend("f", c.most, "o:g"); got != c.mend {
			t.Errorf("%s: got %q, want %q", name, got, c.mend)
		}
	}
}

// TestReadable covers the rule for which files the server's user can read.
func TestReadable(t *testing.T) {
	const spa = 54321
	for name, c := range map[string]struct {
		a    access
		want bool
	}{
		"for the group":              {access{mode: 0o640, gid: spa, dirGID: spa}, true},
		"root's alone":               {access{mode: 0o600, gid: spa, dirGID: spa}, false},
		"root's group":               {access{mode: 0o640, dirGID: spa}, false},
		"the directory's owner":      {access{mode: 0o600, uid: spa, dirUID: spa}, true},
		"not even the owner":         {access{mode: 0o000, uid: spa, gid: spa, dirUID: spa, dirGID: spa}, false},
		"the server's own":           {access{mode: 0o600, uid: spa, dirGID: spa, service: true}, true},
		"nothing is handed over":     {access{mode: 0o600}, true},
		"root's in another's folder": {access{mode: 0o600, dirUID: spa}, false},
	} {
		if got := c.a.readable(); got != c.want {
			t.Errorf("%s: readable %v, want %v", name, got, c.want)
		}
	}
}

func TestInGroup(t *testing.T) {
	if inGroup(0, 0) {
		t.Error("root's own group makes a file the server's")
	}
}
