package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/fleet/office"
)

// starting is an office to make.
type starting struct {
	name, domain, admin string
	services            []string
	ports               []uint
	passphrase          bool
}

func (a *app) initCommand() *cobra.Command {
	var s starting
	cmd := &cobra.Command{
		Use:   "init --name NAME",
		Short: "Make the office of a new fleet",
		Long: `Makes the office of a new fleet in the directory --office: its id, the key that signs
bundles, and the vault with its secrets. You are its first administrator. If the file
--identity does not exist, your identity is made there. With --passphrase the new identity
is sealed, and every command that opens the vault prompts for the passphrase.

Clients find a gateway at its name in --domain, or at its own address. Each --service is
one that clients may be allowed to open, with its ports as in the gateways' server.toml.`,
		Example: `  spa-fleet init --name prod --domain example.net --service ssh=tcp/22
  spa-fleet init --office ~/fleet --name prod --service ssh=tcp/22 --service web=tcp/80,tcp/443`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.init(cmd, s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&s.name, "name", "", "`NAME` of the fleet, for clients' --host NAME/GATEWAY")
	flags.StringVar(&s.domain, "domain", "", "`DOMAIN` in which clients find gateways by name")
	flags.StringArrayVar(&s.services, "service", nil, "a `NAME=PORTS` that clients may open: ssh=tcp/22")
	flags.UintSliceVar(&s.ports, "knock-port", []uint{62201}, "UDP `PORT`s on which all gateways listen for knocks")
	flags.StringVar(&s.admin, "admin", "", "your `NAME` as an administrator (default your user name)")
	flags.BoolVar(&s.passphrase, "passphrase", false, "seal a new identity with a passphrase")
	cmd.MarkFlagRequired("name")
	return cmd
}

func (a *app) init(cmd *cobra.Command, s starting) error {
	settings, err := s.settings()
	if err != nil {
		return err
	}
	if s.admin == "" {
		s.admin = userName()
	}
	if err := service.ValidName(s.admin); err != nil {
		return cli.Misuse(fmt.Errorf("--admin %q: %w", s.admin, err), "")
	}
	if _, err := office.Load(a.dir); !errors.Is(err, office.ErrNone) {
		if err == nil {
			err = fmt.Errorf("%s already has an office", a.dir)
		}
		return cli.Fail(err, "choose another directory: --office DIR")
	}
	me, err := a.ensureIdentity(cmd, s.passphrase)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.dir, 0o750); err != nil {
		return fmt.Errorf("making the office's directory: %w", err)
	}
	o, err := office.Create(a.dir, settings, s.admin, me.Recipient())
	if err != nil {
		return a.explain(err)
	}
	known, err := a.known()
	if err != nil {
		return err
	}
	a.remember(cmd, known, o)
	fmt.Fprintf(cmd.OutOrStdout(), "made the office of %s in %s; its administrator is %s\n", o.Name, a.dir, s.admin)
	a.next(cmd, "on a gateway, spa-server init --fleet > NAME.line; here, spa-fleet gateway add NAME NAME.line")
	return nil
}

// settings parses the flags.
func (s *starting) settings() (office.Settings, error) {
	if err := service.ValidName(s.name); err != nil {
		return office.Settings{}, cli.Misuse(fmt.Errorf("--name %q: %w", s.name, err), "")
	}
	settings := office.Settings{Name: s.name, Domain: s.domain, Receipts: true, Services: make(map[string][]string)}
	for _, port := range s.ports {
		if port < 1 || port > 65535 {
			return office.Settings{}, cli.Misuse(fmt.Errorf("--knock-port %d: a port is 1 to 65535", port), "")
		}
		settings.KnockPorts = append(settings.KnockPorts, uint16(port))
	}
	for _, text := range s.services {
		name, ports, ok := strings.Cut(text, "=")
		err := service.ValidName(name)
		if !ok {
			err = errors.New("write it as ssh=tcp/22")
		}
		list := strings.Split(ports, ",")
		for _, port := range list {
			if err == nil {
				_, err = service.ParsePorts(port)
			}
		}
		if err == nil && settings.Services[name] != nil {
			err = errors.New("given twice")
		}
		if err != nil {
			return office.Settings{}, cli.Misuse(fmt.Errorf("--service %s: %w", text, err), "")
		}
		settings.Services[name] = list
	}
	return settings, nil
}

// userName returns the name of the user, as far as it can be that of an administrator.
func userName() string {
	if u, err := user.Current(); err == nil && service.ValidName(u.Username) == nil {
		return u.Username
	}
	return "admin"
}

// ensureIdentity reads the administrator's identity, and makes it first if there is none.
func (a *app) ensureIdentity(cmd *cobra.Command, passphrase bool) (*age.HybridIdentity, error) {
	path, err := a.identityPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return a.me(cmd.Context())
	}
	var secret []byte
	if passphrase {
		if secret, err = newPassphrase(cmd.Context(), path); err != nil {
			return nil, err
		}
	}
	id, err := office.NewIdentity(path, secret)
	if errors.Is(err, place.ErrExists) {
		return a.me(cmd.Context())
	}
	if err != nil {
		return nil, err
	}
	cli.Note(cmd, "your identity is in %s: keep a private copy elsewhere", path)
	return id, nil
}

func newPassphrase(ctx context.Context, path string) ([]byte, error) {
	secret, err := tty.NewPassphrase(ctx, path)
	return secret, unasked(path, err)
}
