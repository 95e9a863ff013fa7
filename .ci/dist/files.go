package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// A file is part of an archive or a package.
type file struct {
	name string // in an archive
	to   string // in a package; empty: none
	of   string // the program that it is about; empty: all
	data []byte
	conf bool   // the administrator's to change
	only string // the format of package that has it; empty: all
}

const (
	plainMode   fs.FileMode = 0o644
	programMode fs.FileMode = 0o755
)

// pages are the manual pages, and the program that each is about.
var pages = []struct{ path, of string }{
	{"cmd/spa-server/spa-server.8", "spa-server"},
	{"cmd/spa-server/spa-server.toml.5", "spa-server"},
	{"cmd/spa-keygen/spa-keygen.8", "spa-server"},
	{"cmd/spa-keygen/spa-client.toml.5", "spa-server"},
	{"cmd/spa-client/spa-client.1", "spa-client"},
	{"cmd/spa-client/spa-host.toml.5", "spa-client"},
	{"cmd/spa-fleet/spa-fleet.8", "spa-fleet"},
}

// copied are files that are taken as they are. The units name the programs where "make install" puts them.
var copied = []struct {
	path, to, of string
	conf         bool
}{
	{path: "examples/bastion/spa-guard.service", to: "/usr/lib/systemd/system/", of: "spa-server"},
	{path: "examples/bastion/spa-guard-root.service", to: "/usr/lib/systemd/system/", of: "spa-server"},
	{path: "examples/bastion/spa-server.service", to: "/usr/lib/systemd/system/", of: "spa-server"},
	{path: "examples/packages/files/package.conf", to: "/usr/lib/systemd/system/spa-server.service.d/", of: "spa-server"},
	{path: "examples/packages/files/sysusers.conf", to: "/usr/lib/sysusers.d/sallyport.conf", of: "spa-server"},
	{path: "examples/packages/files/tmpfiles.conf", to: "/usr/lib/tmpfiles.d/sallyport.conf", of: "spa-server"},
	{path: "examples/packages/files/logrotate", to: "/etc/logrotate.d/sallyport", of: "spa-server", conf: true},
	{path: "examples/packages/files/apparmor", to: "/etc/apparmor.d/sallyport-server", of: "spa-server", conf: true},
	{path: "examples/fleet/spa-fleet-agent.service", to: "/usr/lib/systemd/system/", of: "spa-fleet"},
	{path: "LICENSE"},
	{path: "README.md"},
	{path: "CHANGELOG.md"},
}

// readShared reads the files that are the same for all targets.
func (r *release) readShared(host target) error {
	for _, c := range copied {
		data, err := os.ReadFile(filepath.Join(r.root, c.path))
		if err != nil {
			return err
		}
		if strings.HasSuffix(c.path, ".service") {
			data = bytes.ReplaceAll(data, []byte("/usr/local/bin/"), []byte("/usr/bin/"))
		}
		to := c.to
		if strings.HasSuffix(to, "/") {
			to += path.Base(c.path)
		}
		name := path.Base(c.path)
		if strings.HasPrefix(c.path, "examples/") {
			name = strings.TrimPrefix(c.path, "examples/")
		}
		r.shared = append(r.shared, file{name: name, to: to, of: c.of, data: data, conf: c.conf})
	}
	if err := r.readPages(); err != nil {
		return err
	}
	for _, program := range host.programs() {
		if err := r.complete(host, program); err != nil {
			return fmt.Errorf("completions of %s: %w", program, err)
		}
	}
	return nil
}

// readPages reads the manual pages, and puts the day and the version into them.
func (r *release) readPages() error {
	for _, page := range pages {
		data, err := os.ReadFile(filepath.Join(r.root, page.path))
		if err != nil {
			return err
		}
		head := `"` + r.time.Format("2006-01-02") + `" "Sallyport ` + strings.ReplaceAll(r.version, "-", `\-`) + `"`
		data = bytes.Replace(data, []byte(`"" Sallyport`), []byte(head), 1)
		packed, err := compressed(data)
		if err != nil {
			return err
		}
		base := path.Base(page.path)
		section := strings.TrimPrefix(path.Ext(base), ".")
		r.shared = append(r.shared, file{name: "man/" + base, of: page.of, data: data},
			file{to: "/usr/share/man/man" + section + "/" + base + ".gz", of: page.of, data: packed})
	}
	return nil
}

// complete lets a program write its completions.
func (r *release) complete(host target, program string) error {
	of := program
	if of == "spa-keygen" {
		of = "spa-server"
	}
	for _, place := range []struct{ shell, to, only string }{
		{"bash", "/usr/share/bash-completion/completions/" + program, ""},
		{"zsh", "/usr/share/zsh/vendor-completions/_" + program, "deb"},
		{"zsh", "/usr/share/zsh/site-functions/_" + program, "rpm"},
		{"zsh", "/usr/share/zsh/site-functions/_" + program, "apk"},
		{"zsh", "/usr/share/zsh/site-functions/_" + program, "archlinux"},
		{"fish", "/usr/share/fish/vendor_completions.d/" + program + ".fish", ""},
	} {
		data, err := exec.Command(r.binary(host, program), "completion", place.shell).Output()
		if err != nil {
			return err
		}
		f := file{to: place.to, of: of, data: data, only: place.only}
		if place.only == "" || place.only == "deb" {
			f.name = "completions/" + program + "." + place.shell
		}
		r.shared = append(r.shared, f)
	}
	return nil
}
