package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/config"
)

// making is a client to make.
type making struct {
	allow   []string
	terms   enrol.Terms
	handing enrol.Handing
	uses    usesFlags
	ensure  bool
	setting setting
}

func newNew(dir *string) *cobra.Command {
	var m making
	cmd := &cobra.Command{
		Use:   "new NAME --allow SERVICE[,SERVICE]",
		Short: "Make a client's key and print its enrolment token",
		Long: `Writes clients/NAME.toml and prints the enrolment token: one line that holds all
that a client needs. Anyone who has the token can open what the client may open, so hand
it over as you would a password, and let "spa-client import" read it. --qr draws it as a
QR code instead, and --png writes that to a picture, which zbarimg (Debian: zbar-tools)
reads: zbarimg --raw picture.png | spa-client import -. Anyone who sees or photographs
the code has the token.

--recovery makes a key for the day on which no other key works, and prints a page to keep
on paper: instructions, the token as a QR code, and the token as words, which "spa-client
import --words" reads. The key is good for a few uses (--uses), opens what --allow names,
and expires only with --expires. Each use raises an alarm in the log, the audit log and
the metrics. "spa-keygen rotate NAME" prints a new page, with a new key and all its uses.

--ensure is for configuration management: a client of this name that exists keeps its
key, and gets the settings that are given here. Only a client that is made has a token,
which --out names a file for. --json tells as "changed" whether there was anything to do.`,
		Example: `  spa-keygen new alice --allow ssh
  spa-keygen new carol --allow ssh --when "mon-fri 08:00-18:00" --expires 90d
  spa-keygen new bob --allow ssh,web --out bob.token
  spa-keygen new dora --allow ssh --qr
  spa-keygen new phone --allow ssh --for-browser --qr
  spa-keygen new door --allow ssh --recovery --uses 3 | lp
  spa-keygen new erin --ensure --allow ssh --expires 2027-01-31 --out erin.token --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !m.ensure && (m.setting.asJSON || m.setting.dry) {
				return cli.Misuse(errors.New("--json and --dry-run need --ensure"), "")
			}
			if err := m.uses.check(cmd); err != nil {
				return err
			}
			c, err := load(*dir)
			if err != nil {
				return err
			}
			if err := checkNew(c, args[0], m.allow); err != nil {
				return err
			}
			if err := m.forBrowser(cmd, c); err != nil {
				return err
			}
			if m.ensure {
				return m.makeSure(cmd, c, args[0])
			}
			return m.make(cmd, c, args[0])
		},
	}
	cmd.Flags().StringSliceVar(&m.allow, "allow", nil, "`SERVICE`s that the client may open: names, "+
		"or ports such as tcp/8443")
	cmd.Flags().BoolVar(&m.ensure, "ensure", false, "if the client exists, set what is given here and keep its key")
	m.terms.Flags(cmd)
	m.handing.Flags(cmd)
	m.uses.flags(cmd)
	m.setting.flags(cmd)
	cmd.MarkFlagRequired("allow")
	cmd.MarkFlagsMutuallyExclusive("ensure", "qr")            // which prints the token
	cmd.MarkFlagsMutuallyExclusive("for-browser", "ensure")   // each run would set another end
	cmd.MarkFlagsMutuallyExclusive("for-browser", "recovery") // the page refuses those
	cmd.RegisterFlagCompletionFunc("allow", completeAllow(dir))
	return cmd
}

// make makes the client and hands out its token.
func (m *making) make(cmd *cobra.Command, c *config.Config, name string) error {
	client := &keys.Client{Name: name, ID: keys.NewID(), Key: keys.NewKey(), Allow: m.allow, Recovery: m.uses.number()}
	if err := m.terms.Apply(client, time.Now()); err != nil {
		return err
	}
	if err := create(cmd, c, client, m.handing); err != nil {
		return err
	}
	act := actOn(client)
	act.Services = client.Allow
	record(cmd, c.Dir, act)
	warnShorter(cmd, c, client)
	return nil
}

// checkNew checks the arguments.
func checkNew(c *config.Config, name string, allow []string) error {
	if err := service.ValidName(name); err != nil {
		return cli.Misuse(err, "choose a name such as alice or build-host-2")
	}
	for i, text := range allow {
		if slices.Contains(allow[:i], text) {
			return cli.Misuse(fmt.Errorf("--allow names %q twice", text), "")
		}
		if err := c.CheckAllow(text); err != nil {
			return cli.Misuse(fmt.Errorf("--allow %q: %w", text, err), "services of this gateway: "+serviceNames(c))
		}
	}
	return nil
}

func serviceNames(c *config.Config) string {
	if len(c.Services) == 0 {
		return "none yet; add a [service.NAME] to " + filepath.Join(c.Dir, config.FileName)
	}
	names := make([]string, len(c.Services))
	for i, s := range c.Services {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

// create writes the client's file and hands out the token. If that fails it removes the file: no one could use the key.
func create(cmd *cobra.Command, c *config.Config, client *keys.Client, h enrol.Handing) error {
	clients, name := filepath.Join(c.Dir, config.ClientsDir), client.Name
	profile, err := profileOf(c, client)
	if err != nil {
		return err
	}
	if err := countUses(c, client); err != nil {
		return err
	}
	err = keys.WriteClient(clients, client, true)
	if errors.Is(err, place.ErrExists) {
		return taken(err, clients, name)
	}
	if err != nil {
		return err
	}
	if err := give(cmd, h, client, profile); err != nil {
		os.Remove(filepath.Join(clients, name+keys.Suffix))
		err = fmt.Errorf("handing out the token (no client was made): %w", err)
		if errors.Is(err, fs.ErrExist) {
			return cli.Fail(err, "a token never overwrites a file: choose another file")
		}
		return err
	}
	return nil
}

// taken returns the error if there is a client of that name. Rotate gives a revoked one no new key.
func taken(err error, clients, name string) error {
	path := filepath.Join(clients, name+keys.Suffix)
	if c, unread := keys.ReadClient(path); unread == nil && !c.Revoked.IsZero() {
		return &cli.Exit{Code: cli.Failed, Err: fmt.Errorf("%w; the client was revoked on %s", err, moment(&c.Revoked)),
			Hint: "choose another name",
			More: []string{fmt.Sprintf("or let %s in again with a new key: rm %s, then run this again", name, path)}}
	}
	return cli.Fail(err, fmt.Sprintf("choose another name, or give %s a new key: spa-keygen rotate %[1]s", name))
}
