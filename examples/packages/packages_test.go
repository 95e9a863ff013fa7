package packages

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// dist makes this machine's archive and packages from a checkout.
func dist(t *testing.T, root string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dist")
	cmd := exec.Command("go", "run", "-C", filepath.Join(root, ".ci", "dist"), ".", "--only", "linux/"+runtime.GOARCH, dir)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1800000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir
}

// one returns the only file of a directory that matches a pattern.
func one(t *testing.T, dir, pattern string) string {
	t.Helper()
	paths := lab.Value(filepath.Glob(filepath.Join(dir, pattern)))(t)
	if len(paths) != 1 {
		t.Fatalf("%s: %q", pattern, paths)
	}
	return paths[0]
}

// TestPackages makes the packages once, and looks at all of them.
func TestPackages(t *testing.T) {
	look(t)
	dir := dist(t, lab.Value(filepath.Abs("../.."))(t))
	copied := t.TempDir()
	lab.Must(t, exec.Command("sh", "-c", `tar -C ../.. --exclude ./dist --exclude ./bin -cf - . | tar -C "$1" -xmf -`,
		"sh", copied).Run())
	t.Run("same bytes", func(t *testing.T) { testSameBytes(t, dir, copied) })
	t.Run("contents", func(t *testing.T) { testContents(t, dir) })
	t.Run("arch", func(t *testing.T) { testArch(t, dir, copied) })
	t.Run("life", func(t *testing.T) { testLife(t, dir) })
}

// look lists the files of the module, so that the result of a run counts only until one of them changes: go test does
// not see what other programs read.
func look(t *testing.T) {
	t.Helper()
	lab.Must(t, filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && slices.Contains([]string{".git", "bin", "dist"}, entry.Name()) &&
			filepath.Dir(path) == filepath.Join("..", "..") {
			return filepath.SkipDir
		}
		return err
	}))
}

// testSameBytes: a copy of the checkout in another directory, of another time, makes the same packages.
func testSameBytes(t *testing.T, dir, copied string) {
	want := lab.Value(os.ReadFile(filepath.Join(dir, "SHA256SUMS")))(t)
	got := lab.Value(os.ReadFile(filepath.Join(dist(t, copied), "SHA256SUMS")))(t)
	if !bytes.Equal(got, want) {
		t.Errorf("made again elsewhere:\n%s\nbefore:\n%s", got, want)
	}
}

// needed are files that each server package has.
var needed = []string{
	"usr/bin/spa-server", "usr/bin/spa-keygen", "usr/lib/systemd/system/spa-guard.service",
	"usr/lib/systemd/system/spa-guard-root.service", "usr/lib/systemd/system/spa-server.service",
	"usr/lib/systemd/system/spa-server.service.d/package.conf",
	"usr/lib/sysusers.d/sallyport.conf", "usr/lib/tmpfiles.d/sallyport.conf", "etc/logrotate.d/sallyport",
	"etc/apparmor.d/sallyport-server", "usr/share/man/man8/spa-server.8.gz", "usr/share/man/man8/spa-keygen.8.gz",
	"usr/share/man/man5/spa-server.toml.5.gz", "usr/share/bash-completion/completions/spa-server",
	"usr/share/fish/vendor_completions.d/spa-keygen.fish", "usr/share/doc/sallyport-server/copyright",
}

// neededFleet are files that each package of spa-fleet has.
var neededFleet = []string{"usr/bin/spa-fleet", "usr/lib/systemd/system/spa-fleet-agent.service",
	"usr/share/man/man8/spa-fleet.8.gz"}

// testContents: all formats have the same files, and scripts that a shell can read.
func testContents(t *testing.T, dir string) {
	lab.NeedProgram(t, "dpkg-deb", "apt-get install dpkg")
	lab.NeedProgram(t, "rpm", "apt-get install rpm")
	lab.NeedProgram(t, "zstd", "apt-get install zstd")
	lists := map[string]string{
		"*.deb":         `dpkg-deb --fsys-tarfile "$1" | tar -tf -`,
		"*.rpm":         `rpm -qpl "$1"`,
		"*.apk":         `tar -tzf "$1"`,
		"*.pkg.tar.zst": `zstd -dc "$1" | tar -tf -`,
	}
	for name, needed := range map[string][]string{"sallyport-server": needed, "sallyport-fleet": neededFleet} {
		for pattern, list := range lists {
			out := lab.Value(exec.Command("sh", "-ec", list, "sh", one(t, dir, name+pattern)).Output())(t)
			var files []string
			for line := range strings.Lines(string(out)) {
				files = append(files, strings.Trim(strings.TrimSpace(line), "./"))
			}
			for _, file := range needed {
				if !slices.Contains(files, file) {
					t.Errorf("%s%s has no %s:\n%s", name, pattern, file, out)
				}
			}
			if slices.ContainsFunc(files, func(f string) bool { return strings.HasPrefix(f, "etc/spa") }) {
				t.Errorf("%s%s has files in /etc/spa, which is the administrator's:\n%s", name, pattern, out)
			}
		}
	}
	for _, line := range []string{
		`for s in .pre-install .post-install .pre-upgrade .post-upgrade .pre-deinstall .post-deinstall; do
			tar -xzOf "$1"/sallyport-server*.apk $s > script; sh -n script; done`,
		`zstd -dc "$1"/sallyport-server*.pkg.tar.zst | tar -xOf - .INSTALL > script; bash -n script`,
		`dpkg-deb -R "$1"/sallyport-server*.deb .; for s in preinst postinst prerm postrm; do sh -n DEBIAN/$s; done
			grep -q /usr/bin/spa-server usr/lib/systemd/system/spa-server.service
			! grep -r /usr/local usr/lib/systemd`,
		`dpkg-deb -R "$1"/sallyport-fleet*.deb .; grep -q /usr/bin/spa-fleet usr/lib/systemd/system/spa-fleet-agent.service`,
	} {
		cmd := exec.Command("sh", "-ec", line, "sh", dir)
		cmd.Dir = t.TempDir()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
	}
}

// testArch: the functions of the PKGBUILD, as makepkg calls them, install the files of the package, and its scripts are
// the package's.
func testArch(t *testing.T, dir, copied string) {
	install := lab.Value(os.ReadFile("aur/sallyport-server.install"))(t)
	made := one(t, dir, "sallyport-server*.pkg.tar.zst")
	want := lab.Value(exec.Command("sh", "-ec", `zstd -dc "$1" | tar -xOf - .INSTALL`, "sh", made).Output())(t)
	if !bytes.Equal(install, want) {
		t.Errorf("aur/sallyport-server.install is not what dist made of scripts/: zstd -dc %s | tar -xOf - .INSTALL > "+
			"aur/sallyport-server.install", filepath.Base(made))
	}
	root := t.TempDir()
	cmd := exec.Command("bash", "-ec", `source aur/PKGBUILD
srcdir=$1; mkdir "$srcdir"; ln -s "$2" "$srcdir/sallyport-$pkgver"
cd "$srcdir"; build
pkgdir=$1/root
for pkgname in sallyport-server sallyport-client sallyport-fleet; do cd "$srcdir"; package_$pkgname; done`,
		"bash", filepath.Join(root, "src"), copied)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range slices.Concat(needed, neededFleet, []string{"usr/bin/spa-client",
		"usr/share/man/man1/spa-client.1"}) {
		name = strings.TrimSuffix(strings.Replace(name, "doc/sallyport-server/copyright", "licenses/sallyport-server/LICENSE",
			1), ".gz") // makepkg compresses
		if _, err := os.Stat(filepath.Join(root, "src", "root", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestUserOfAnotherPurpose: a user spa that may have another purpose stops an installation, but no upgrade.
func TestUserOfAnotherPurpose(t *testing.T) {
	home := t.TempDir()
	fake := t.TempDir()
	getent := []byte("#!/bin/sh\n[ -n \"$ENTRY\" ] && echo \"$ENTRY\"\n")
	lab.Must(t, os.WriteFile(filepath.Join(fake, "getent"), getent, 0o755))
	for _, test := range []struct {
		entry string
		ours  bool
	}{
		{"", true}, // no user of that name
		{"spa:x:998:998:Sallyport gateway:/nonexistent:/usr/sbin/nologin", true},
		{"spa:x:998:998::/home/spa-that-is-not-there:/usr/sbin/nologin", true}, // useradd --system --no-create-home
		{"spa:x:100:101::/nonexistent:/sbin/nologin", true},                    // BusyBox
		{"spa:x:998:998::/:/bin/false", true},
		{"spa:x:998:998::/nonexistent:/bin/bash", false},
		{"spa:x:998:998::/nonexistent:", false}, // /bin/sh
		{"spa:x:1000:1000::/nonexistent:/usr/sbin/nologin", false},
		{"spa:x:0:0::/nonexistent:/usr/sbin/nologin", false},
		{"spa:x:998:998::" + home + ":/usr/sbin/nologin", false},
	} {
		for _, how := range []string{"install", "1", "1.2.3-r0", "upgrade", "2"} {
			cmd := exec.Command("sh", "scripts/preinst", how)
			cmd.Env = []string{"PATH=" + fake + ":" + os.Getenv("PATH"), "ENTRY=" + test.entry}
			out, err := cmd.CombinedOutput()
			if want := test.ours || how == "upgrade" || how == "2"; (err == nil) != want {
				t.Errorf("%s, %q: %v\n%s", how, test.entry, err, out)
			}
		}
	}
}

// TestProfile: the parser of AppArmor takes the profile.
func TestProfile(t *testing.T) {
	parser := lab.NeedProgram(t, "apparmor_parser", "apt-get install apparmor")
	if out, err := exec.Command(parser, "-Q", "-K", "-T", "files/apparmor").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
