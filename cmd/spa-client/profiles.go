package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
)

// defaultConfig returns $XDG_CONFIG_HOME/spa, or the system's directory for such files, or "" if there is neither. It
// ignores a relative $XDG_CONFIG_HOME, as the specification says.
func defaultConfig() string {
	if dir := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "spa")
	}
	if dir, err := os.UserConfigDir(); err == nil {
		return filepath.Join(dir, "spa")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".config", "spa")
}

// hostsDir returns the directory of the profiles.
func (a *app) hostsDir() (string, error) {
	if a.config == "" {
		return "", cli.Misuse(errors.New("this account has no configuration directory"), "choose one: --config DIR")
	}
	return filepath.Join(a.config, "hosts"), nil
}

// profilePath returns the path of a host's file. It refuses names that could lead out of the directory.
func (a *app) profilePath(name string) (string, error) {
	if err := service.ValidName(name); err != nil {
		return "", cli.Misuse(err, "spa-client hosts lists the hosts")
	}
	dir, err := a.hostsDir()
	return filepath.Join(dir, name+keys.Suffix), err
}

// names returns the hosts, sorted. Without a directory there are none.
func (a *app) names() ([]string, error) {
	dir, err := a.hostsDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing the hosts: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), keys.Suffix)
		if ok && service.ValidName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// profile reads a host's profile with its keys, and asks for the passphrase if it is locked. The name is that of a
// host, or FLEET/GATEWAY; an empty one means the only host.
func (a *app) profile(ctx context.Context, name string) (*keys.Profile, error) {
	s, gateway, err := a.target(name)
	if err != nil {
		return nil, err
	}
	p, _, err := a.open(ctx, s)
	if err != nil || gateway == "" {
		return p, err
	}
	return p.Gateway(gateway)
}

// profileFor is profile for a request of services. If no host is given and an argument is the name of one, the hint
// says so.
func (a *app) profileFor(ctx context.Context, name string, asked []service.Service) (*keys.Profile, error) {
	p, err := a.profile(ctx, name)
	if host, ok := a.hostAmong(asked); ok && errors.Is(err, errSeveral) {
		return nil, cli.Misuse(err, fmt.Sprintf("%s is a host, not a service: --host %[1]s", host))
	}
	return p, err
}

// errSeveral is returned if no host is named and there are several.
var errSeveral = errors.New("there are several hosts")

// outline is profile, but does not ask for a passphrase. If the profile is locked, its keys are missing.
func (a *app) outline(name string) (*keys.Profile, error) {
	s, gateway, err := a.target(name)
	switch {
	case err != nil:
		return nil, err
	case gateway == "":
		return &s.Profile, nil
	}
	return s.Gateway(gateway)
}

// stored reads a host's profile as it is in its file.
func (a *app) stored(name string) (*keys.StoredProfile, error) {
	if name == "" {
		only, err := a.onlyName()
		if err != nil {
			return nil, err
		}
		name = only
	}
	path, err := a.profilePath(name)
	if err != nil {
		return nil, err
	}
	s, err := keys.ReadStored(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, a.noHost(name)
	}
	return s, err
}

func (a *app) onlyName() (string, error) {
	names, err := a.names()
	if err != nil {
		return "", err
	}
	switch len(names) {
	case 0:
		return "", cli.Fail(errors.New("no host is known yet"), importFirst)
	case 1:
		return names[0], nil
	}
	return "", cli.Misuse(errSeveral, "choose one: --host "+strings.Join(a.asHosts(names), "|"))
}

const importFirst = "import the token that the gateway's administrator gave you: spa-client import FILE"

// noHost returns the error for an unknown host, with the known hosts as the hint.
func (a *app) noHost(name string) error {
	hint := importFirst
	if names, err := a.names(); err == nil && len(names) > 0 {
		hint = "known hosts: " + strings.Join(a.asHosts(names), ", ")
	}
	return cli.Fail(fmt.Errorf("there is no host %s", name), hint)
}

// hostFlag adds --host with completion.
func (a *app) hostFlag(cmd *cobra.Command, host *string) {
	cmd.Flags().StringVar(host, "host", "", "`NAME` of the host, or FLEET/GATEWAY; optional if there is only one host")
	cmd.RegisterFlagCompletionFunc("host", a.completeTarget)
}

func (a *app) completeHost(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.names()
	return names, cobra.ShellCompDirectiveNoFileComp
}

// serviceNames returns the services of a profile, sorted.
func serviceNames(p *keys.Profile) []string {
	names := make([]string, 0, len(p.Services))
	for name := range p.Services {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
