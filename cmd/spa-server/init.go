package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/server/setup"
)

func newInit(dir *string) *cobra.Command {
	var address, name, state string
	var services []string
	var resetClock, fleet bool
	cmd := &cobra.Command{
		Use:   "init --address HOST|IP[:PORT] [--service NAME=PORT[,PORT]]... [--state DIR]",
		Short: "Write a new gateway's files",
		Long: `Writes server.toml, gate.key, clients/ and the journal into the configuration
directory, and changes nothing else: no port is shut before "spa-server run".
With --state the journal, and later grants and audit log, go into another directory,
which is for the server's user alone.

--address is where clients find this gateway. Its port is the UDP port for knocks,
62201 by default.

--reset-clock, alone, is for a gateway whose clock was ahead: it forgets the packets that
were spent under that clock, so that knocks are accepted again.

--fleet also makes the key with which the gateway opens the bundles of a fleet, and prints
the line that the fleet's office needs (spa-fleet gateway add). Without --address it is for
a gateway that there is already, and changes nothing else; it prints the line again.`,
		Example: `  spa-server init --address gw.example.net --service ssh=tcp/22
  spa-server init --address gw.example.net --service ssh=tcp/22 --state /var/lib/spa
  spa-server init --address 192.0.2.1:443 --service ssh=tcp/22 --service web=tcp/80,tcp/443
  spa-server init --fleet > web7.line         for the office: spa-fleet gateway add web7 web7.line`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if resetClock {
				return forgetClock(cmd, *dir, address != "" || len(services) > 0 || fleet)
			}
			if fleet && address == "" && len(services) == 0 && state == "" {
				c, err := load(*dir)
				if err != nil {
					return err
				}
				return initFleet(cmd, c)
			}
			if address == "" {
				return cli.Misuse(errors.New("--address is missing"), "--address HOST, where clients find this gateway")
			}
			c, err := newConfig(*dir, name, address, state, services)
			if err != nil {
				return err
			}
			return initGateway(cmd, c, fleet)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "where clients find this gateway: `HOST|IP[:PORT]`")
	cmd.Flags().StringVar(&name, "name", "gw", "what clients call this gateway")
	cmd.Flags().StringArrayVar(&services, "service", nil,
		"a service to guard, `NAME=PORTS`: ssh=tcp/22, mosh=udp/60000-60010")
	cmd.Flags().StringVar(&state, "state", "", "where the journal, the grants and the audit log go: "+
		"`DIR`, such as /var/lib/spa; the configuration directory by default")
	cmd.Flags().BoolVar(&fleet, "fleet", false, "make the gateway's key for a fleet, and print what its office needs")
	cmd.Flags().BoolVar(&resetClock, "reset-clock", false, "start a new journal after the clock was ahead")
	return cmd
}

// initGateway writes the files of a new gateway and prints what to do next.
func initGateway(cmd *cobra.Command, c config.Config, fleet bool) error {
	if err := setup.Init(c, time.Now()); err != nil {
		return initError(err)
	}
	at, out := quote.Shell(c.Dir), cmd.OutOrStdout()
	if fleet { // then that is for the line that the office needs
		out = cmd.ErrOrStderr()
	}
	fmt.Fprintf(out, `wrote %s with server.toml, gate.key, clients/ and the journal
next:
  spa-keygen new NAME --allow %s --config %s  a key for each user
  spa-server check --config %s
  spa-server run --confirm 5m --config %s     on trial: reverts after 5 minutes unless someone connects through a knock
`, c.Dir, allowExample(c), at, at, at)
	if fleet {
		return initFleet(cmd, &c)
	}
	return nil
}

// forgetClock removes the journal. The next start creates a new one, which accepts packets stamped at least a window
// after that start. It refuses every packet made under the wrong clock that could still be valid then, unless that
// clock was ahead by even more; the administrator who uses the flag vouches that it was not.
func forgetClock(cmd *cobra.Command, dir string, more bool) error {
	if more {
		return cli.Misuse(errors.New("--reset-clock takes no other flags"), "spa-server init --reset-clock")
	}
	c, err := load(dir)
	if err != nil {
		return err
	}
	if err := setup.ForgetJournal(c); err != nil {
		return startError(err, c.State)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "the journal was removed; knocks are accepted again %v after the next start\n",
		c.Window)
	return nil
}

func initError(err error) error {
	if errors.Is(err, setup.ErrInitialized) {
		return cli.Fail(err, "nothing was changed; give another directory with --config, or move these files away")
	}
	return err
}

func allowExample(c config.Config) string {
	if len(c.Services) == 0 {
		return "SERVICE"
	}
	return c.Services[0].Name
}

// newConfig makes the configuration from the flags. A wrong flag is misuse.
func newConfig(dir, name, address, state string, services []string) (config.Config, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return config.Config{}, err
	}
	c := config.Default(dir)
	if state != "" {
		if c.State, err = filepath.Abs(state); err != nil {
			return c, err
		}
		c.Audit.File = "" // in the state directory
	}
	c.Name = name
	c.ServerID = keys.NewServerID()
	if err := service.ValidName(name); err != nil {
		return c, cli.Misuse(fmt.Errorf("--name: %w", err), "a name such as gw or office-2")
	}
	host, port, err := service.SplitAddress(address)
	if err != nil {
		return c, cli.Misuse(fmt.Errorf("--address %q: %w", address, err), "HOST, IP, HOST:PORT or [IPv6]:PORT")
	}
	c.Address = host
	if port != 0 {
		c.KnockPorts = []config.KnockPort{{Port: port}}
	}
	for _, text := range services {
		service, err := parseService(text)
		if err != nil {
			return c, cli.Misuse(fmt.Errorf("--service %q: %w", text, err),
				"NAME=PORTS, for example ssh=tcp/22 or web=tcp/80,tcp/443")
		}
		if slices.ContainsFunc(c.Services, func(s config.Service) bool { return s.Name == service.Name }) {
			return c, cli.Misuse(fmt.Errorf("--service %s is given twice", service.Name),
				"several ports of a service go into one: NAME=PORT,PORT")
		}
		c.Services = append(c.Services, service)
	}
	slices.SortFunc(c.Services, func(a, b config.Service) int { return strings.Compare(a.Name, b.Name) })
	if err := c.Check(); err != nil {
		return c, cli.Misuse(err, "nothing was written; give --service other ports")
	}
	return c, nil
}

func parseService(text string) (config.Service, error) {
	name, list, ok := strings.Cut(text, "=")
	if !ok {
		return config.Service{}, errors.New("there is no '='")
	}
	if err := service.ValidName(name); err != nil {
		return config.Service{}, err
	}
	s := config.NewService(name)
	for _, text := range strings.Split(list, ",") {
		ports, err := service.ParsePorts(text)
		if err != nil {
			return config.Service{}, err
		}
		s.Ports = append(s.Ports, ports)
	}
	return s, nil
}
