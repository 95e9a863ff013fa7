package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys"
)

func (a *app) lockCommand() *cobra.Command {
	var ring bool
	cmd := &cobra.Command{
		Use:   "lock HOST",
		Short: "Encrypt a host's keys with a passphrase",
		Long: `Lock encrypts the keys in a host's file with a passphrase (Argon2id,
XChaCha20-Poly1305). A stolen copy of the file is then useless without the passphrase.
Every command that knocks asks for it on the terminal, even if standard input is not the
terminal. Nothing else in the file can be changed while it is locked.

With --keyring the passphrase is random and kept in the desktop's keyring: you are not
asked for it while you are logged in there.

Backups made before this command still contain the keys in clear. To be safe, get a new
key from the gateway's administrator, and lock the host again as soon as you have
imported it.`,
		Example:           "  spa-client lock gw\n  spa-client lock gw --keyring",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.named(cmd, args[0])
			if err != nil {
				return err
			}
			if s.Locked() {
				return cli.Fail(fmt.Errorf("%s is already locked", s.Name),
					"spa-client unlock "+s.Name+" unlocks it; then lock it with another passphrase")
			}
			if ring {
				return a.lockInRing(cmd, s)
			}
			return a.lock(cmd, s)
		},
	}
	cmd.Flags().BoolVar(&ring, "keyring", false, "keep a random passphrase in the desktop's keyring")
	return cmd
}

func (a *app) unlockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unlock HOST",
		Short: "Remove the passphrase from a host's keys",
		Long: `Unlock stores a locked host's keys in clear again: anyone who can read the file has
them. Knocks on the host no longer ask for a passphrase.`,
		Example:           "  spa-client unlock gw",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.named(cmd, args[0])
			if err != nil {
				return err
			}
			if !s.Locked() {
				return cli.Fail(fmt.Errorf("%s is not locked", s.Name), "")
			}
			return a.unlock(cmd, s)
		},
	}
}

// named is stored for lock and unlock. It removes a temporary file with keys in clear, which either command leaves
// behind if it is killed.
func (a *app) named(cmd *cobra.Command, host string) (*keys.StoredProfile, error) {
	if err := whole(cmd, host); err != nil {
		return nil, err
	}
	path, err := a.profilePath(host)
	if err != nil {
		return nil, err
	}
	if _, err := keys.Sweep(filepath.Dir(path), host); err != nil {
		return nil, err
	}
	return a.stored(host)
}

func (a *app) lock(cmd *cobra.Command, p *keys.StoredProfile) error {
	passphrase, err := newPassphrase(cmd.Context(), p.Name)
	if err != nil {
		return err
	}
	s, err := p.Lock(passphrase, "")
	if err != nil {
		return err
	}
	if err := a.store(p, s); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "locked %s\n", p.Name)
	return nil
}

// newPassphrase asks for a passphrase twice.
func newPassphrase(ctx context.Context, host string) ([]byte, error) {
	passphrase, err := tty.NewPassphrase(ctx, host)
	if err != nil {
		return nil, unasked(host, err)
	}
	return passphrase, nil
}

// unasked returns the error if a passphrase could not be asked for.
func unasked(host string, err error) error {
	if errors.Is(err, tty.ErrNone) {
		return cli.Fail(fmt.Errorf("the passphrase for %s is needed, but %w", host, err),
			"run it from a terminal, lock the host with --keyring, or leave it unlocked on this machine")
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("asking for the passphrase for %s: %w", host, err)
}

// lockInRing locks with a random passphrase that only the keyring knows. The keyring stores it before the file needs
// it.
func (a *app) lockInRing(cmd *cobra.Command, p *keys.StoredProfile) error {
	name := "spa-" + strings.ToLower(rand.Text())
	passphrase := rand.Text()
	s, err := p.Lock([]byte(passphrase), name)
	if err != nil {
		return err
	}
	err = a.withRing(cmd.Context(), func(ring keyring) error { return ring.Set(name, passphrase) })
	if errors.Is(err, context.Canceled) {
		return err
	}
	if err != nil {
		return cli.Fail(fmt.Errorf("the desktop's keyring did not store the passphrase: %w", err),
			fmt.Sprintf("nothing was changed; to type a passphrase instead: spa-client lock %s", p.Name))
	}
	if err := a.store(p, s); err != nil {
		return errors.Join(err, a.withRing(cmd.Context(), func(ring keyring) error { return ring.Delete(name) }))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "locked %s; the desktop's keyring has its passphrase\n", p.Name)
	return nil
}

func (a *app) unlock(cmd *cobra.Command, s *keys.StoredProfile) error {
	p, _, err := a.open(cmd.Context(), s)
	if err != nil {
		return err
	}
	if err := a.store(s, &keys.StoredProfile{Profile: *p}); err != nil {
		return err
	}
	a.discard(cmd, s)
	fmt.Fprintf(cmd.OutOrStdout(), "unlocked %s\n", s.Name)
	return nil
}

// discard removes a passphrase that is no longer needed from the keyring.
func (a *app) discard(cmd *cobra.Command, s *keys.StoredProfile) {
	if s.Keyring() == "" {
		return
	}
	if err := a.withRing(cmd.Context(), func(ring keyring) error { return ring.Delete(s.Keyring()) }); err != nil {
		cli.Warn(cmd, "the desktop's keyring still has a passphrase that is no longer needed, %s: %v", s.Keyring(), err)
	}
}

// store writes a profile over the one that it was made from.
func (a *app) store(before, after *keys.StoredProfile) error {
	dir, err := a.hostsDir()
	if err != nil {
		return err
	}
	err = keys.ReplaceStored(dir, before, after)
	if errors.Is(err, keys.ErrChanged) {
		return cli.Fail(err, "nothing was changed; run the command again")
	}
	return err
}

// tries is how often the user may type a passphrase.
const tries = 3

// open returns a profile with its keys, and the passphrase that opened it: from the keyring or the user, or nil if the
// profile is not locked.
func (a *app) open(ctx context.Context, s *keys.StoredProfile) (*keys.Profile, []byte, error) {
	if !s.Locked() {
		return unsealed(s, nil)
	}
	if s.Keyring() != "" {
		passphrase, err := a.fromRing(ctx, s)
		if err != nil {
			return nil, nil, err
		}
		return unsealed(s, passphrase)
	}
	prompt := "passphrase for " + s.Name + ": "
	for try := 1; ; try++ {
		passphrase, err := tty.Ask(ctx, prompt)
		if err != nil {
			return nil, nil, unasked(s.Name, err)
		}
		p, passphrase, err := unsealed(s, passphrase)
		if err == nil || try == tries {
			return p, passphrase, err
		}
		prompt = "wrong passphrase; passphrase for " + s.Name + ": "
	}
}

func unsealed(s *keys.StoredProfile, passphrase []byte) (*keys.Profile, []byte, error) {
	p, err := s.Unlock(passphrase)
	if errors.Is(err, keys.ErrPassphrase) {
		return nil, nil, cli.Fail(fmt.Errorf("%s stays locked: %w", s.Name, err),
			"if the passphrase is lost, the host needs "+newToken(&s.Profile))
	}
	return p, passphrase, err
}
