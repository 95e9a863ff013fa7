package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPackageVersion: a later version is the higher one for dpkg, and each is one that nfpm takes.
func TestPackageVersion(t *testing.T) {
	for module, want := range map[string]string{
		"v1.2.3": "1.2.3", "v1.2.3+dirty": "1.2.3", "v1.3.0-rc.1": "1.3.0-rc.1", "(devel)": "0.0.0-devel", "": "0.0.0-devel",
		"v0.0.0-20261129213639-5c40a68cd1d4+dirty":   "0.0.0-git20261129213639",
		"v1.2.4-0.20261129213639-5c40a68cd1d4":       "1.2.4-git20261129213639",
		"v1.3.0-rc.1.0.20261129213639-5c40a68cd1d4a": "1.3.0-git20261129213639",
	} {
		if got := packageVersion(module); got != want {
			t.Errorf("%q: got %q, want %q", module, got, want)
		}
	}
}

// TestDay: without a commit and without SOURCE_DATE_EPOCH there is no day, and not today's.
func TestDay(t *testing.T) {
	for _, test := range []struct{ epoch, commit, want string }{
		{"", "2026-11-29T21:36:39Z", "2026-11-29T21:36:39Z"},
		{"86400", "2026-11-29T21:36:39Z", "1970-01-02T00:00:00Z"},
		{"", "", "error"}, {"today", "", "error"}, {"today", "2026-11-29T21:36:39Z", "error"},
	} {
		got := "error"
		if at, err := day(test.epoch, test.commit); err == nil {
			got = at.Format(time.RFC3339)
		}
		if got != test.want {
			t.Errorf("%q, %q: got %s, want %s", test.epoch, test.commit, got, test.want)
		}
	}
}

// TestArchives: other programs read the archives, which differ in nothing from run to run.
func TestArchives(t *testing.T) {
	r := release{time: time.Date(2026, 11, 29, 21, 36, 38, 0, time.UTC)}
	entries := []entry{{"program", programMode, bytes.Repeat([]byte("x"), 5000)}, {"man/page.1", plainMode, nil}}
	dir := t.TempDir()
	for name, make := range map[string]func() ([]byte, error){
		"a.tar.gz": func() ([]byte, error) { return r.tar("top", entries) },
		"a.zip":    func() ([]byte, error) { return r.zip(entries) },
	} {
		one, err := make()
		two, err2 := make()
		if err != nil || err2 != nil || !bytes.Equal(one, two) {
			t.Errorf("%s: made twice: %v, %v, equal %v", name, err, err2, bytes.Equal(one, two))
		}
		if err := os.WriteFile(filepath.Join(dir, name), one, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("tar", "-tvzf", filepath.Join(dir, "a.tar.gz")).CombinedOutput()
	if lines := strings.Split(string(out), "\n"); err != nil || !strings.HasPrefix(lines[0], "-rwxr-xr-x 0/0") ||
		!strings.HasSuffix(lines[1], "top/man/page.1") {
		t.Errorf("tar: %v\n%s", err, out)
	}
	out, err = exec.Command("python3", "-m", "zipfile", "-l", filepath.Join(dir, "a.zip")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "2026-11-29 21:36:38") {
		t.Errorf("zip: %v\n%s", err, out)
	}
}

// TestReplaceable: a directory that it did not make is not removed.
func TestReplaceable(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(replaceable(dir), replaceable(filepath.Join(dir, "none"))); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]bool{"letter.txt": false, "SHA256SUMS": true} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := replaceable(dir); (err == nil) != want {
			t.Errorf("with %s: %v", name, err)
		}
		os.Remove(filepath.Join(dir, name))
	}
}

// TestChoose: a target that does not exist is an error, before anything is built.
func TestChoose(t *testing.T) {
	if got, err := choose("linux/riscv64,windows/amd64"); err != nil || len(got) != 2 || got[0].arch != "riscv64" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := choose("linux/vax"); err == nil || !strings.Contains(err.Error(), "windows/amd64") {
		t.Errorf("linux/vax: got %v, want an error that lists the targets", err)
	}
	if all, err := choose(""); err != nil || !slices.ContainsFunc(all, func(t target) bool { return t.os == "freebsd" }) {
		t.Errorf("all: got %v, %v", all, err)
	}
}
