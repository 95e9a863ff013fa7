package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A release is what one run makes.
type release struct {
	root, work, out string
	version         string // "1.2.3", or "1.2.3-git20261129213639" between releases
	time            time.Time
	shared          []file                   // that are the same for all targets
	modules         map[string]*debug.Module // in the programs, by package URL
	programs        map[string][]string      // the package URLs of each program's modules
}

// begin builds the programs for this machine, which tell the version and write the completions.
func (r *release) begin(version string) error {
	host := target{os: "linux", arch: runtime.GOARCH}
	if err := r.build(host); err != nil {
		return err
	}
	info, err := buildinfo.ReadFile(r.binary(host, "spa-server"))
	if err != nil {
		return err
	}
	settings := make(map[string]string)
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if r.version = version; version == "" {
		r.version = packageVersion(info.Main.Version)
	}
	if r.time, err = day(os.Getenv("SOURCE_DATE_EPOCH"), settings["vcs.time"]); err != nil {
		return err
	}
	if settings["vcs.modified"] == "true" {
		fmt.Fprintln(os.Stderr, "dist: there are changes that are not committed: this is no release")
	}
	r.modules, r.programs = make(map[string]*debug.Module), make(map[string][]string)
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return err
	}
	return r.readShared(host)
}

var pseudo = regexp.MustCompile(`^v(\d+\.\d+\.\d+)-(?:.*\.)?(\d{14})-[0-9a-f]{12}`)

// packageVersion returns the version of packages for a version of the module. No package manager has a version with a
// commit in it, so a version between releases keeps the commit's time: the later one is the higher one.
func packageVersion(module string) string {
	if m := pseudo.FindStringSubmatch(module); m != nil {
		return m[1] + "-git" + m[2]
	}
	if !strings.HasPrefix(module, "v") {
		return "0.0.0-devel"
	}
	version, _, _ := strings.Cut(module[1:], "+")
	return version
}

// day returns the time of all files.
func day(epoch, commit string) (time.Time, error) {
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH=%s is no number of seconds", epoch)
		}
		return time.Unix(seconds, 0).UTC(), nil
	}
	if commit == "" {
		return time.Time{}, errors.New("this is no checkout of git: set SOURCE_DATE_EPOCH to the seconds of the release")
	}
	return time.Parse(time.RFC3339, commit)
}

// build builds a target's programs.
func (r *release) build(t target) error {
	args := []string{"build", "-buildvcs=auto", "-trimpath", "-ldflags=-s", "-o", r.dir(t) + "/"}
	for _, name := range t.programs() {
		args = append(args, "./cmd/"+name)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = r.root
	cmd.Stderr = os.Stderr
	// This machine's settings must not change the programs.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOEXPERIMENT=", "GOAMD64=v1", "GOARM64=v8.0",
		"GORISCV64=rva20u64", "GOFIPS140=off", "GOOS="+t.os, "GOARCH="+t.arch)
	cmd.Env = append(cmd.Env, t.env...)
	if err := os.MkdirAll(r.dir(t), 0o755); err != nil {
		return err
	}
	return cmd.Run()
}

func (r *release) dir(t target) string { return filepath.Join(r.work, t.os+"-"+t.arch) }

func (r *release) binary(t target, name string) string {
	if t.os == "windows" {
		name += ".exe"
	}
	return filepath.Join(r.dir(t), name)
}

// make makes everything for one target.
func (r *release) make(t target) error {
	if err := r.build(t); err != nil {
		return err
	}
	for _, name := range t.programs() {
		if err := r.noteModules(name, r.binary(t, name)); err != nil {
			return err
		}
	}
	if err := r.archive(t); err != nil {
		return err
	}
	for _, format := range t.formats {
		for _, p := range []pack{server, client, fleet} {
			if err := r.pack(t, p, format); err != nil {
				return fmt.Errorf("%s of %s: %w", format, p.name, err)
			}
		}
	}
	return os.RemoveAll(r.dir(t))
}

// finish writes SHA256SUMS and prints the sizes.
func (r *release) finish() error {
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(r.out, entry.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), entry.Name())
		fmt.Printf("%6.1f MB  %s\n", float64(len(data))/1e6, entry.Name())
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(sums.String()), 0o644)
}

// sorted returns the keys of a map in order.
func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
