package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

func newRevoke(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke NAME",
		Short: "Revoke a client's key permanently",
		Long: `Marks the client as revoked in its file. A running spa-server applies that at once: it
no longer answers the client's knocks, and shuts the ports that the client had open to new
connections. Established sessions continue: spa-server revoke NAME --cut ends them.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient(dir),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := service.ValidName(args[0]); err != nil {
				return cli.Misuse(err, "list the clients: spa-keygen list")
			}
			c, err := keys.ChangeClient(filepath.Join(*dir, config.ClientsDir), args[0], revoke)
			if errors.Is(err, errRevoked) {
				fmt.Fprintln(cmd.OutOrStdout(), err)
				return nil
			}
			if errors.Is(err, place.ErrFull) {
				err := remove(cmd, filepath.Join(*dir, config.ClientsDir), args[0], err)
				if err == nil {
					record(cmd, *dir, control.Act{Client: args[0]})
				}
				return err
			}
			if errors.Is(err, fs.ErrNotExist) && inFleet(*dir) {
				return cli.Fail(fmt.Errorf("there is no client %s with a file on this gateway: %w", args[0], err),
					officeRevokes+args[0])
			}
			if err != nil {
				return absent(err, args[0])
			}
			record(cmd, *dir, actOn(c))
			fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked\n", c.Name)
			if inFleet(*dir) {
				cli.Note(cmd, "that is the key in the file here. %s", officeRevokes+args[0])
			}
			return nil
		},
	}
}

// officeRevokes says where a client of the fleet is revoked, whether or not there is a file of its name.
const officeRevokes = "a client of the fleet is revoked in its office: spa-fleet client revoke "

// inFleet reports whether the gateway is in a fleet.
func inFleet(dir string) bool {
	gateway, err := config.Load(dir)
	return err == nil && gateway.Fleet.On()
}

// remove removes a file that could not be marked as revoked: that shuts the client out too.
func remove(cmd *cobra.Command, clients, name string, why error) error {
	path := filepath.Join(clients, name+keys.Suffix)
	if c, err := keys.ReadClient(path); err == nil {
		if err := onlyFile(c, clients, "it is not revoked"); err != nil {
			return errors.Join(why, err)
		}
	}
	if err := os.Remove(path); err != nil {
		return errors.Join(why, err)
	}
	cli.Warn(cmd, "%v", why)
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "removed %s instead, so its settings are lost: a running server shuts the "+
		"client out within a second or two\n", path)
	return err
}

// errRevoked is returned for a client that is already revoked: the date of the first time stays.
var errRevoked = errors.New("already revoked")

func revoke(c *keys.Client) error {
	if !c.Revoked.IsZero() {
		return fmt.Errorf("%s was %w on %s", c.Name, errRevoked, c.Revoked.Local().Format("2006-01-02 15:04:05"))
	}
	c.Revoked = time.Now().UTC().Truncate(time.Second)
	return nil
}
