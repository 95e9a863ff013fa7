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

// defaultConfig is $XDG_CONFIG_HOME/spa, or in the system's place for such files. It
// is empty where there is neither. A relative $XDG_CONFIG_HOME is none, as its specification has it.
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

// hostsDir is where the profiles are.
func (a *app) hostsDir() (string, error) {
	if a.config == "" {
		return "", cli.Misuse(errors.New("this account has no configuration directory"), "choose one: --config DIR")
	}
	return filepath.Join(a.config, "hosts"), nil
}

// profilePath is the file of a host. A name that is none could lead out of the directory.
func (a *app) profilePath(name string) (string, error) {
	if err := service.ValidName(name); err != nil {
		return "", cli.Misuse(err, "spa-client hosts lists the hosts")
	}
	dir, err := a.hostsDir()
	return filepath.Join(dir, name+keys.Suffix), err
}

// names lists the hosts, sorted. There are none where there is no directory.
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

// profile reads a host's profile, with its keys: a locked one's passphrase is asked for.
// Without a name it is that of the only host there is.
func (a *app) profile(ctx context.Context, name string) (*keys.Profile, error) {
	s, err := a.stored(name)
	if err != nil {
		return nil, err
	}
	p, _, err := a.open(ctx, s)
	return p, err
}

// profileFor is profile for services to be asked for. Where a host must be named, and stands among
// them, that is said.
func (a *app) profileFor(ctx context.Context, name string, asked []service.Service) (*keys.Profile, error) {
	p, err := a.profile(ctx, name)
	if host, ok := a.hostAmong(asked); ok && errors.Is(err, errSeveral) {
		return nil, cli.Misuse(err, fmt.Sprintf("%s is a host, not a service: --host %[1]s", host))
	}
	return p, err
}

// errSeveral is returned where no host is named and there are several.
var errSeveral = errors.New("there are several hosts")

// outline is what can be told of a host without asking anybody: a locked profile has no keys in it.
func (a *app) outline(name string) (*keys.Profile, error) {
	s, err := a.stored(name)
	if err != nil {
		return nil, err
	}
	return &s.Profile, nil
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
	return "", cli.Misuse(errSeveral, "choose one: --host "+strings.Join(names, "|"))
}

const importFirst = "import the token that the gateway's administrator gave you: spa-client import FILE"

// noHost says that there is no such host, and which there are.
func (a *app) noHost(name string) error {
	hint := importFirst
	if names, err := a.names(); err == nil && len(names) > 0 {
		hint = "known hosts: " + strings.Join(names, ", ")
	}
	return cli.Fail(fmt.Errorf("there is no host %s", name), hint)
}

// hostFlag adds --host with completion.
func (a *app) hostFlag(cmd *cobra.Command, host *string) {
	cmd.Flags().StringVar(host, "host", "", "`NAME` of the host; may be left out where there is only one")
	cmd.RegisterFlagCompletionFunc("host", a.completeHost)
}

func (a *app) completeHost(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.names()
	return names, cobra.ShellCompDirectiveNoFileComp
}

// serviceNames are the services that a profile knows, sorted.
func serviceNames(p *keys.Profile) []string {
	names := make([]string, 0, len(p.Services))
	for name := range p.Services {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
