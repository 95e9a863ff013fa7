package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"sallyport/firewall"
	"sallyport/spa/config"
	"sallyport/spa/server/home"
)

func newGuard(dir *string) *cobra.Command {
	var only bool
	cmd := &cobra.Command{
		Use:   "guard",
		Short: "Load the guard and end, at boot before the network is up",
		Long: `Shuts the guarded ports and ends. It listens for nothing; "spa-server run" does.
At boot it stands before the network, so that no port is open for a moment.

Where server.toml has a mistake or cannot be read, it says so and loads the guard by
the settings that were taken over last: a mistake must not leave the ports open.

--print writes the guard in nft's words instead, without grants, and changes nothing: for
the file that your host loads its rules from. It needs persist = "file" in server.toml.`,
		Example: `  spa-server guard
  spa-server guard --print > /etc/spa/guard.nft`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if only {
				c, err := load(*dir)
				if err != nil {
					return err
				}
				return printGuard(cmd, c)
			}
			log := newLog(cmd.ErrOrStderr())
			c, err := loadOrLastGood(*dir, log)
			if err != nil {
				return err
			}
			done, err := guard(cmd.Context(), c, log)
			if err != nil {
				return startError(err, c.State)
			}
			fmt.Fprintln(cmd.OutOrStdout(), done)
			return nil
		},
	}
	cmd.Flags().BoolVar(&only, "print", false, "write the guard as a file for nft -f, and change nothing")
	return cmd
}

// guard loads the guard, whatever the state directory is like, and says what was done.
func guard(ctx context.Context, c *config.Config, log *slog.Logger) (string, error) {
	done, err := guardIn(ctx, c, false, log)
	if err == nil || errors.Is(err, firewall.ErrForeign) || os.Geteuid() != 0 {
		return done, err
	}
	stopgap, failed := stopgapState()
	if failed != nil {
		return "", err
	}
	elsewhere := *c
	elsewhere.State = stopgap
	done, failed = guardIn(ctx, &elsewhere, true, log)
	if failed != nil {
		return "", errors.Join(err, fmt.Errorf("nor with another state directory: %w", failed), os.RemoveAll(stopgap))
	}
	log.Error("the state directory is unusable: the guard is loaded without earlier grants, and the server will not start until this is fixed",
		"state", c.State, "error", err)
	return done, nil
}

// stopgapState makes a state directory for a guard where the one of server.toml is missing, full or damaged. It
// is of this network namespace, and gone with the next boot, as the guard is.
func stopgapState() (string, error) {
	namespace, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	dir := fmt.Sprintf("/run/spa-%d", namespace.Sys().(*syscall.Stat_t).Ino)
	return dir, os.MkdirAll(dir, 0o700)
}

// starts is how long a server that runs may take until its guard is in place.
const starts = 10 * time.Second

// awaitGuard waits for the running server to load the guard, and reports whether it did: the lock may be held by another
// process, or by a server that hangs.
func awaitGuard(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, starts)
	defer cancel()
	for {
		if there, err := firewall.Stands(); there && err == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// guards reports whether the settings are for a guard that shuts ports.
func guards(c *config.Config) bool {
	return c.Firewall.Backend != "dry-run" && c.Firewall.Mode != "admit" && len(c.Services) > 0
}

func guardIn(ctx context.Context, c *config.Config, stopgap bool, log *slog.Logger) (string, error) {
	lock, err := home.Lock(c.State)
	if errors.Is(err, home.ErrRunning) && (!guards(c) || awaitGuard(ctx)) {
		return "the guard is managed by the running spa-server", nil
	}
	if err != nil {
		return "", err
	}
	defer lock.Close()
	clients, problems := home.LoadClients(filepath.Join(c.Dir, config.ClientsDir))
	for _, problem := range problems {
		log.Error("client file ignored: this client cannot knock until it is fixed", "error", problem)
	}
	fc := home.FirewallConfig(c, clients, time.Now)
	fc.NoCarry = stopgap
	fw, err := firewall.New(fc, log)
	if err != nil {
		return "", err
	}
	defer fw.Close()
	if err := fw.Load(ctx, 0, time.Now()); err != nil {
		return "", err
	}
	if !stopgap {
		if err := home.SaveSettings(c, time.Now()); err != nil {
			log.Warn("the settings could not be saved: if server.toml has a mistake at the next boot, an older guard or none will be loaded", "error", err)
		}
	}
	return "the guard is in place: " + fw.Describe(), nil
}

// loadOrLastGood reads the configuration, or where that fails says so and returns what was taken over last.
func loadOrLastGood(dir string, log *slog.Logger) (*config.Config, error) {
	c, err := home.LoadConfig(dir, log)
	if err == nil {
		return c, nil
	}
	last, at, none := home.LastGood(dir)
	if none != nil {
		return nil, loadError(err)
	}
	log.Error("server.toml cannot be used: its last good version stays in force until it is fixed (spa-server check)",
		"of", at.Format(time.RFC3339), "error", err)
	return last, nil
}

// printGuard writes the guard without grants, so no client matters.
func printGuard(cmd *cobra.Command, c *config.Config) error {
	rules, err := firewall.Rules(home.FirewallConfig(c, nil, time.Now))
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), rules)
	return err
}
