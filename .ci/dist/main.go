// Dist makes what users download: archives of the programs, packages of the server, the client and the office of a
// fleet, a list of what is inside (CycloneDX), and SHA256SUMS. From the same commit it makes the same bytes, in any
// directory.
//
//	go run -C .ci/dist . [--only linux/amd64] [--version 1.2.3] DIRECTORY
//
// The directory is written anew, once everything is made. The day of the files is that of the commit, or
// SOURCE_DATE_EPOCH.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A target is a system that programs are built for.
type target struct {
	os, arch string
	env      []string // for the Go toolchain
	pkg      string   // the architecture as nfpm calls it
	formats  []string // of packages
}

// targets are all systems. The server runs on Linux only. No distribution has packages for mipsle but Debian.
var targets = []target{
	{os: "linux", arch: "amd64", pkg: "amd64", formats: []string{"deb", "rpm", "apk", "archlinux"}},
	{os: "linux", arch: "arm64", pkg: "arm64", formats: []string{"deb", "rpm", "apk", "archlinux"}},
	{os: "linux", arch: "arm", env: []string{"GOARM=6"}, pkg: "arm6", formats: []string{"deb", "rpm", "apk", "archlinux"}},
	{os: "linux", arch: "mipsle", env: []string{"GOMIPS=softfloat"}, pkg: "mipsle", formats: []string{"deb"}},
	{os: "linux", arch: "riscv64", pkg: "riscv64", formats: []string{"deb", "rpm", "apk", "archlinux"}},
	{os: "darwin", arch: "amd64"},
	{os: "darwin", arch: "arm64"},
	{os: "windows", arch: "amd64"},
	{os: "windows", arch: "arm64"},
	{os: "freebsd", arch: "amd64"},
}

func (t target) String() string { return t.os + "/" + t.arch }

func (t target) programs() []string {
	if t.os == "linux" {
		return []string{"spa-server", "spa-keygen", "spa-client", "spa-fleet"}
	}
	return []string{"spa-client"}
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("dist: ")
	only := flag.String("only", "", "targets, such as linux/amd64,windows/amd64 (default: all)")
	version := flag.String("version", "", "of the packages (default: that of the programs)")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: dist [--only OS/ARCH,...] [--version VERSION] DIRECTORY")
	}
	if err := makeAll(flag.Arg(0), *only, *version); err != nil {
		log.Fatal(err)
	}
}

func makeAll(dir, only, version string) error {
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	if err := replaceable(dir); err != nil {
		return err
	}
	r := release{root: filepath.Join("..", "..")}
	if r.work, err = os.MkdirTemp(filepath.Dir(dir), "dist"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	r.out = filepath.Join(r.work, "out")
	if err := r.begin(version); err != nil {
		return err
	}
	for _, t := range chosen {
		if err := r.make(t); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
	}
	if err := r.writeSBOM(); err != nil {
		return err
	}
	if err := r.finish(); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(r.out, dir)
}

// replaceable returns an error if a directory has anything but what an earlier run made.
func replaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if _, made := os.Stat(filepath.Join(dir, "SHA256SUMS")); made != nil {
		return fmt.Errorf("%s is not from an earlier run: name another directory, or remove it", dir)
	}
	return err
}

func choose(only string) ([]target, error) {
	if only == "" {
		return targets, nil
	}
	var chosen []target
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(targets, func(t target) bool { return t.String() == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no target %q: %v", name, targets)
		}
		chosen = append(chosen, targets[i])
	}
	return chosen, nil
}
