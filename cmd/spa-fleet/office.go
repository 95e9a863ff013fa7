package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys/place"
	"sallyport/keys/quote"
	"sallyport/spa/fleet/office"
)

// load reads the office.
func (a *app) load() (*office.Office, error) {
	o, err := office.Load(a.dir)
	return o, a.explain(err)
}

// change changes the office while no other command does.
func (a *app) change(change func(*office.Office) error) error {
	return a.explain(office.Change(a.dir, change))
}

// explain adds a hint to an error of the office's files.
func (a *app) explain(err error) error {
	var exit *cli.Exit
	if err == nil || errors.As(err, &exit) {
		return err
	}
	var file *place.FileError
	switch {
	case errors.Is(err, office.ErrNone):
		return cli.Fail(err, "go to the office's directory or name it with --office DIR; make one with spa-fleet init")
	case errors.Is(err, place.ErrHeld):
		return cli.Fail(err, "another spa-fleet is running there: wait for it, and run this again")
	case errors.Is(err, office.ErrUnknown):
		return cli.Fail(err, "list the names: spa-fleet gateway list, spa-fleet client list, spa-fleet admin list")
	case errors.As(err, &file):
		return cli.Fail(err, "nothing was changed; to find what was merged or edited: git -C "+quote.Shell(a.dir)+
			" status")
	}
	return err
}

// identityPath returns the file with the administrator's identity.
func (a *app) identityPath() (string, error) {
	if a.identity != "" {
		return a.identity, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", cli.Misuse(errors.New("this account has no configuration directory"),
			"choose a file: --identity FILE")
	}
	return filepath.Join(dir, "spa", "fleet.identity"), nil
}

// tries is how often the user may type a passphrase.
const tries = 3

// me reads the administrator's identity.
func (a *app) me(ctx context.Context) (*age.HybridIdentity, error) {
	path, err := a.identityPath()
	if err != nil {
		return nil, err
	}
	n := 0
	id, err := office.ReadIdentity(path, func(wrong bool) ([]byte, error) {
		if n++; n > tries {
			return nil, office.ErrPassphrase
		}
		prompt := "passphrase for " + path + ": "
		if wrong {
			prompt = "wrong passphrase; " + prompt
		}
		answer, err := tty.Ask(ctx, prompt)
		return answer, unasked(path, err)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Fail(fmt.Errorf("this account has no administrator's identity: %w", err),
			"make one with spa-fleet admin identity, for an administrator to add; or name yours with --identity FILE")
	}
	return id, err
}

// unasked returns the error if a passphrase could not be asked for.
func unasked(path string, err error) error {
	if errors.Is(err, tty.ErrNone) {
		return cli.Fail(fmt.Errorf("%s needs its passphrase, but %w", path, err), "run it from a terminal")
	}
	return err
}

// unlock opens the vault, and warns of administrators in doubt.
func (a *app) unlock(cmd *cobra.Command, o *office.Office, me *age.HybridIdentity) (*office.Vault, error) {
	v, err := o.Unlock(me)
	if errors.Is(err, office.ErrNotAdmin) {
		return nil, cli.Fail(err, "run spa-fleet admin identity, and send what it prints to an administrator, who "+
			"adds you")
	}
	if err != nil {
		return nil, err
	}
	if err := a.recognise(cmd, o, v); err != nil {
		return nil, err
	}
	found := o.Mismatches(v)
	for _, name := range sorted(found) {
		cli.Warn(cmd, "administrator %s %s: add or remove it again (spa-fleet admin add, spa-fleet admin remove)", name,
			found[name])
	}
	return v, nil
}

// known reads which keys of offices the administrator knows.
func (a *app) known() (*office.Known, error) {
	path, err := a.identityPath()
	if err != nil {
		return nil, err
	}
	known, err := office.ReadKnown(path)
	if err != nil {
		return nil, cli.Fail(err, "if it cannot be mended, move it away, and run spa-fleet trust KEY with the key that "+
			"another administrator tells you")
	}
	return known, nil
}

// recognise refuses a vault whose key is not the one that the administrator knows. At the first use it remembers the
// key.
func (a *app) recognise(cmd *cobra.Command, o *office.Office, v *office.Vault) error {
	known, err := a.known()
	if err != nil {
		return err
	}
	err = known.Check(o, v)
	switch {
	case errors.Is(err, office.ErrFirst):
		if err := o.Signs(v); err != nil {
			return err
		}
		cli.Note(cmd, "%v: compare its key with another administrator: %s", err, o.KeyText())
		a.remember(cmd, known, o)
		return nil
	case errors.Is(err, office.ErrOtherOffice):
		return cli.Fail(err, "if you have used it before, an attacker may have put another one there: "+
			"do not use these files; "+
			"otherwise ask an administrator for its key, and run spa-fleet trust KEY")
	case errors.Is(err, office.ErrOtherKey):
		return cli.Fail(err, "if another administrator has run spa-fleet rotate-key, ask them for the new key, and run "+
			"spa-fleet trust KEY; otherwise an attacker may have put another vault there: do not use these files")
	}
	return err
}

// remember remembers the office's key.
func (a *app) remember(cmd *cobra.Command, known *office.Known, o *office.Office) {
	if err := known.Trust(o.Fleet, o.Key); err != nil {
		cli.Warn(cmd, "the office's key could not be remembered, so that another vault would go unnoticed: %v", err)
	}
}

// withVault changes the office with its secrets. The passphrase is asked for before the office is locked.
func (a *app) withVault(cmd *cobra.Command, change func(*office.Office, *office.Vault) error) error {
	if _, err := a.load(); err != nil {
		return err
	}
	me, err := a.me(cmd.Context())
	if err != nil {
		return err
	}
	return a.change(func(o *office.Office) error {
		v, err := a.unlock(cmd, o, me)
		if err != nil {
			return err
		}
		return change(o, v)
	})
}

// sure asks whether to go on, unless yes.
func sure(cmd *cobra.Command, yes bool, question string) error {
	if yes {
		return nil
	}
	ok, err := tty.Confirm(cmd.Context(), question+" [y/N] ")
	if errors.Is(err, tty.ErrNone) {
		return cli.Misuse(errors.New(question+" There is no terminal for the answer"), "to answer yes: --yes")
	}
	if err == nil && !ok {
		err = errors.New("nothing was changed")
	}
	return err
}

// next names the command to run next.
func (a *app) next(cmd *cobra.Command, command string) {
	if a.dir != "." {
		command += " --office " + quote.Shell(a.dir)
	}
	cli.Note(cmd, "next: %s", command)
}

// publishNext names the command that makes a change known to the gateways.
func (a *app) publishNext(cmd *cobra.Command, o *office.Office) {
	to := ""
	if o.Published.Serial == 0 {
		to = " --to DIR"
	}
	a.next(cmd, "spa-fleet publish"+to)
}

func sorted[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for name := range m {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}
