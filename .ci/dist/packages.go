package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/apk"  // the formats
	_ "github.com/goreleaser/nfpm/v2/arch" // register
	_ "github.com/goreleaser/nfpm/v2/deb"  // themselves
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // here
)

// A pack is a package, in any format.
type pack struct {
	name, about string
	of          string // whose files it has
	programs    []string
	scripts     bool
}

var (
	server = pack{
		name: "sallyport-server", of: "spa-server", programs: []string{"spa-server", "spa-keygen"}, scripts: true,
		about: "Keep ports shut until a client knocks with a key\n" +
			"One encrypted UDP packet opens one port, for one address, for a short while.\n" +
			"This package has the gateway, spa-server, and spa-keygen, which makes keys.",
	}
	client = pack{
		name: "sallyport-client", of: "spa-client", programs: []string{"spa-client"},
		about: "Open a gateway's port to this address for a short time\n" +
			"One encrypted UDP packet opens one port, for one address, for a short while.\n" +
			"This package has the client, spa-client.",
	}
	fleet = pack{
		name: "sallyport-fleet", of: "spa-fleet", programs: []string{"spa-fleet"},
		about: "Say who may use which of many gateways\n" +
			"Signed bundles, sealed to each gateway, tell it who may knock there.\n" +
			"This package has spa-fleet, for whoever has more than one gateway.",
	}
)

// pack writes one package.
func (r *release) pack(t target, p pack, format string) error {
	stage, err := os.MkdirTemp(r.work, "stage")
	if err != nil {
		return err
	}
	defer os.RemoveAll(stage)
	contents, err := r.contents(t, p, format, stage)
	if err != nil {
		return err
	}
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: p.name, Arch: t.pkg, Platform: t.os, Version: r.version, Release: "1", Section: "net", Priority: "optional",
		Maintainer: "the Sallyport authors", Description: p.about, License: "MIT", MTime: r.time, DisableGlobbing: true,
		Overridables: nfpm.Overridables{Contents: contents, Umask: 0o022},
	})
	info.RPM.BuildHost = "localhost"
	if format == "archlinux" && t.pkg == "arm6" {
		info.Arch = "arm7" // the oldest that there is
	}
	if p.scripts {
		if err := r.addScripts(info, format, stage); err != nil {
			return err
		}
	}
	if err := nfpm.PrepareForPackager(info, format); err != nil {
		return err
	}
	packager, err := nfpm.Get(format)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := packager.Package(info, &b); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.out, packager.ConventionalFileName(info)), b.Bytes(), 0o644)
}

func (r *release) addScripts(info *nfpm.Info, format, stage string) error {
	paths := make(map[string]string)
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		data, err := os.ReadFile(filepath.Join(r.root, "examples", "packages", "scripts", name))
		if err != nil {
			return err
		}
		paths[name] = filepath.Join(stage, name)
		if err := os.WriteFile(paths[name], data, programMode); err != nil {
			return err
		}
		if err := os.Chtimes(paths[name], r.time, r.time); err != nil { // an apk has it
			return err
		}
	}
	info.Scripts = nfpm.Scripts{PreInstall: paths["preinst"], PostInstall: paths["postinst"],
		PreRemove: paths["prerm"], PostRemove: paths["postrm"]}
	switch format { // the others call the same scripts for an upgrade
	case "apk":
		info.APK.Scripts = nfpm.APKScripts{PreUpgrade: paths["preinst"], PostUpgrade: paths["postinst"]}
	case "archlinux":
		info.ArchLinux.Scripts = nfpm.ArchLinuxScripts{PreUpgrade: paths["preinst"], PostUpgrade: paths["postinst"]}
	}
	return nil
}

// contents lists the files of a package, copied into stage.
func (r *release) contents(t target, p pack, format, stage string) (files.Contents, error) {
	var all files.Contents
	add := func(to, from, kind string, mode fs.FileMode) {
		all = append(all, &files.Content{Source: from, Destination: to, Type: kind,
			FileInfo: &files.ContentFileInfo{Mode: mode, Owner: "root", Group: "root", MTime: r.time}})
	}
	for _, program := range p.programs {
		add("/usr/bin/"+program, r.binary(t, program), "", programMode)
	}
	for i, f := range r.shared {
		if f.only != "" && f.only != format || f.of != "" && f.of != p.of {
			continue
		}
		to := f.to
		if f.name == "LICENSE" {
			to = "/usr/share/doc/" + p.name + "/copyright"
		}
		if to == "" {
			continue
		}
		from := filepath.Join(stage, fmt.Sprint(i))
		if err := os.WriteFile(from, f.data, plainMode); err != nil {
			return nil, err
		}
		kind := ""
		if f.conf {
			kind = files.TypeConfigNoReplace
		}
		add(to, from, kind, plainMode)
	}
	return all, nil
}
