package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/spa/fleet/office"
)

func (a *app) adminCommand() *cobra.Command {
	return group("admin", "Add, list and remove administrators", a.adminAdd(), a.adminList(), a.adminRemove(),
		a.adminIdentity())
}

func validAdmin(name string) error {
	if err := service.ValidName(name); err != nil {
		return cli.Misuse(err, "list the administrators: spa-fleet admin list")
	}
	return nil
}

func (a *app) adminAdd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "add NAME RECIPIENT|FILE",
		Short: "Let another administrator open the office",
		Long: `Seals the office to one more administrator, by the recipient that "spa-fleet admin
identity" prints for them. From then on they can do all that you can: read every
client's key, publish, and remove you.`,
		Example: `  carol$ spa-fleet admin identity > carol.recipient
  spa-fleet admin add carol carol.recipient`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validAdmin(args[0]); err != nil {
				return err
			}
			r, err := readRecipient(args[1])
			if err != nil {
				return err
			}
			question := fmt.Sprintf("%s will be able to read every key of the fleet, and to publish. Add %[1]s?",
				args[0])
			if err := sure(cmd, yes, question); err != nil {
				return err
			}
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				if err := o.AddAdmin(v, args[0], r); err != nil {
					return err
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s is an administrator\n", args[0])
				return err
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}

// readRecipient reads a recipient, or the file that holds one.
func readRecipient(arg string) (*age.HybridRecipient, error) {
	text, path := []byte(arg), "the recipient"
	if !strings.HasPrefix(arg, "age1") {
		var err error
		path = arg
		if text, err = place.ReadFile(arg, 1<<20); err != nil {
			return nil, err
		}
	}
	r, err := office.ParseAdmin(path, text)
	if err != nil {
		return nil, cli.Fail(err, "the other administrator prints it: spa-fleet admin identity")
	}
	return r, nil
}

func (a *app) adminList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the administrators",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.load()
			if err != nil {
				return err
			}
			for _, admin := range o.Admins {
				if !asJSON {
					fmt.Fprintln(cmd.OutOrStdout(), admin.Name)
					continue
				}
				err := cli.JSON(cmd, struct {
					Name      string `json:"name"`
					Recipient string `json:"recipient"`
				}{admin.Name, admin.Recipient.String()})
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
	cli.JSONFlag(cmd, &asJSON)
	return cmd
}

func (a *app) adminRemove() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove an administrator from the office",
		Long: `Seals the office, and the key of every client, to the other administrators only. It prints
what to replace, because the removed administrator still has the keys of the past. If the
command was interrupted, run it again.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeAdmin,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := validAdmin(args[0]); err != nil {
				return err
			}
			if err := sure(cmd, yes, fmt.Sprintf("%s will no longer be able to open this office. Remove %[1]s?",
				args[0])); err != nil {
				return err
			}
			return a.withVault(cmd, func(o *office.Office, v *office.Vault) error {
				n, err := o.RemoveAdmin(v, args[0])
				if err != nil {
					return err
				}
				a.tellRemoved(cmd, o, args[0], n)
				return nil
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}

func (a *app) tellRemoved(cmd *cobra.Command, o *office.Office, name string, n int) {
	fmt.Fprintf(cmd.OutOrStdout(), "%s is no longer an administrator; the keys of %d clients are sealed to the others "+
		"only\n", name, n)
	cli.Note(cmd, "%s may still have the key that signs bundles and the keys of all clients, even from an old copy of "+
		"the office", name)
	cli.Note(cmd, "to replace the key that signs bundles: spa-fleet rotate-key")
	cli.Note(cmd, "to replace the key of each of the %d clients: spa-fleet client rotate NAME --overlap 0",
		len(o.Clients))
	a.publishNext(cmd, o)
}

func (a *app) adminIdentity() *cobra.Command {
	var passphrase bool
	cmd := &cobra.Command{
		Use:   "identity",
		Short: "Print your recipient, with which an administrator adds you",
		Long: `Prints the recipient of your identity. It is not secret: send it to an administrator, who
runs "spa-fleet admin add". If you have no identity, this makes one in --identity, and
seals it with a passphrase if --passphrase is given.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			id, err := a.ensureIdentity(cmd, passphrase)
			if errors.Is(err, fs.ErrPermission) {
				return cli.Fail(err, "choose another file: --identity FILE")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), id.Recipient())
			return err
		},
	}
	cmd.Flags().BoolVar(&passphrase, "passphrase", false, "seal a new identity with a passphrase")
	return cmd
}
