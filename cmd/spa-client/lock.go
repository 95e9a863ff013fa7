package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

func (a *app) lockCommand() *cobra.Command {
	var ring bool
	cmd := &cobra.Command{
		Use:   "lock HOST",
		Short: "Seal a host's keys with a passphrase",
		Long: `Lock seals the keys of a host in its file with a passphrase (Argon2id,
XChaCha20-Poly1305). Whoever copies the file then has to guess the passphrase. Every
command that knocks asks for it, on the terminal, also when its input is something
else. Nothing else in the file can be changed while it is locked.

With --keyring the passphrase is a random one, and the desktop's keyring keeps it:
nothing is asked while you are logged in there.

The file held the keys until now, so backups of it may go on holding them: a new key
from the gateway ("spa-keygen rotate") that is locked at once has never been there.`,
		Example:           "  spa-client lock gw\n  spa-client lock gw --keyring",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.named(args[0])
			if err != nil {
				return err
			}
			if s.Locked() {
				return cli.Fail(fmt.Errorf("%s is locked already", s.Name),
					"spa-client unlock "+s.Name+" unlocks it; then lock it with another passphrase")
			}
			if ring {
				return a.lockInRing(cmd, s)
			}
			return a.lock(cmd, s)
		},
	}
	cmd.Flags().BoolVar(&ring, "keyring", false, "let the desktop's keyring keep the passphrase")
	return cmd
}

func (a *app) unlockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unlock HOST",
		Short: "Keep a host's keys without a passphrase again",
		Long: `Unlock opens a locked host's keys for good: its file holds them again, and whoever
can read the file has them. Nothing is asked any more when it is knocked on.`,
		Example:           "  spa-client unlock gw",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeHost,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.named(args[0])
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

// named is stored for lock and unlock. Killed in between, one of them may have left the host's keys
// in clear beside its file.
func (a *app) named(host string) (*keys.StoredProfile, error) {
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

// newPassphrase asks for a passphrase, twice.
func newPassphrase(ctx context.Context, host string) ([]byte, error) {
	first, err := ask(ctx, "new passphrase of "+host+" (it is not shown): ")
	if err != nil {
		return nil, unasked(host, err)
	}
	if len(first) == 0 {
		return nil, cli.Fail(errors.New("the passphrase is empty; nothing was changed"), "")
	}
	again, err := ask(ctx, "the same again: ")
	if err != nil {
		return nil, unasked(host, err)
	}
	if !bytes.Equal(first, again) {
		return nil, cli.Fail(errors.New("the two passphrases differ; nothing was changed"), "")
	}
	return first, nil
}

// unasked says why a passphrase could not be asked for.
func unasked(host string, err error) error {
	if errors.Is(err, errNoTerminal) {
		return cli.Fail(fmt.Errorf("the passphrase of %s is needed, and %w", host, err),
			"run it from a terminal, lock the host with --keyring, or leave it unlocked on this machine")
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("asking for the passphrase of %s: %w", host, err)
}

// lockInRing locks with a passphrase that nobody knows but the keyring. It is there before
// the file needs it.
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

// discard takes a passphrase that is of no use any more out of the keyring.
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

// tries is how often a passphrase may be mistyped.
const tries = 3

// open returns a profile with its keys, and the passphrase that opened it: the keyring's,
// a person's, or none where it is not locked.
func (a *app) open(ctx context.Context, s *keys.StoredProfile) (*keys.Profile, []byte, error) {
	if !s.Locked() {
		return unsealed(s, nil)
	}
	if s.Keyring() != "" {
		passphrase, err := a.fromRing(ctx, s.Name, s.Keyring())
		if err != nil {
			return nil, nil, err
		}
		return unsealed(s, passphrase)
	}
	prompt := "passphrase of " + s.Name + ": "
	for try := 1; ; try++ {
		passphrase, err := ask(ctx, prompt)
		if err != nil {
			return nil, nil, unasked(s.Name, err)
		}
		p, passphrase, err := unsealed(s, passphrase)
		if err == nil || try == tries {
			return p, passphrase, err
		}
		prompt = "wrong passphrase; passphrase of " + s.Name + ": "
	}
}

func unsealed(s *keys.StoredProfile, passphrase []byte) (*keys.Profile, []byte, error) {
	p, err := s.Unlock(passphrase)
	if errors.Is(err, keys.ErrPassphrase) {
		return nil, nil, cli.Fail(fmt.Errorf("%s stays locked: %w", s.Name, err),
			"if the passphrase is lost, the host needs a new token (spa-keygen rotate, on the gateway)")
	}
	return p, passphrase, err
}
