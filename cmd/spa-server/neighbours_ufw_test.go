package main

import (
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
)

// ufw is the real one, with its files and lock in a directory of the test.
type ufw struct{ shell }

// ufwDefaults is Debian's /etc/default/ufw without the kernel parameters, which a test must not change.
const ufwDefaults = `IPV6=yes
DEFAULT_INPUT_POLICY="DROP"
DEFAULT_OUTPUT_POLICY="ACCEPT"
DEFAULT_FORWARD_POLICY="DROP"
DEFAULT_APPLICATION_POLICY="SKIP"
MANAGE_BUILTINS=no
IPT_SYSCTL=
IPT_MODULES=""
`

func newUFW(g *gateway) tool {
	g.t.Helper()
	dir := g.t.TempDir()
	lab.NeedProgram(g.t, "ufw", "apt-get install ufw")
	etc, run, defaults := filepath.Join(dir, "etc"), filepath.Join(dir, "run"), filepath.Join(dir, "default")
	for _, needed := range []string{run, filepath.Join(etc, "applications.d")} {
		lab.Must(g.t, os.MkdirAll(needed, 0o755))
	}
	// ufw's own files, not those of the machine's administrator.
	fresh := lab.Value(filepath.Glob("/usr/share/ufw/*.rules"))(g.t)
	for _, path := range append(fresh, "/usr/share/ufw/ufw.conf") {
		copyFile(g.t, path, filepath.Join(etc, filepath.Base(path)))
	}
	lab.Must(g.t, os.WriteFile(defaults, []byte(ufwDefaults), 0o644))
	return &ufw{shell{g: g, files: map[string]string{"/etc/ufw": etc, "/run": run, "/etc/default/ufw": defaults}}}
}

func (u *ufw) begin()  { u.g.t.Helper(); u.run("ufw", "--force", "enable") }
func (u *ufw) allow()  { u.g.t.Helper(); u.run("ufw", "allow", "22/tcp") }
func (u *ufw) reload() { u.g.t.Helper(); u.run("ufw", "reload") }
func (u *ufw) end()    { u.g.t.Helper(); u.run("ufw", "disable") }

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data := lab.Value(os.ReadFile(from))(t)
	lab.Must(t, os.WriteFile(to, data, 0o644))
}
