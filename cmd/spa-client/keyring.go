package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	desktopring "github.com/zalando/go-keyring"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/tty"
	"sallyport/keys"
)

// keyring stores passphrases under names while the user is logged in.
type keyring interface {
	Get(name string) (string, error)
	Set(name, passphrase string) error
	Delete(name string) error
}

// desktop is the keyring of the user's desktop: the Secret Service on Linux and FreeBSD, the Keychain on macOS, the
// Credential Manager on Windows.
type desktop struct{}

const ringService = "spa-client"

func (desktop) Get(name string) (string, error) { return desktopring.Get(ringService, name) }
func (desktop) Set(name, passphrase string) error {
	return desktopring.Set(ringService, name, passphrase)
}
func (desktop) Delete(name string) error { return desktopring.Delete(ringService, name) }

// ringAnswers is how long to wait for a keyring: it may ask its user to unlock it first, and it may hang.
const ringAnswers = 2 * time.Minute

// withRing uses the keyring until ctx ends or the keyring takes too long.
func (a *app) withRing(ctx context.Context, do func(keyring) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ringAnswers, fmt.Errorf("it did not answer within %v", ringAnswers))
	defer cancel()
	_, err := tty.Interruptible(ctx, func() ([]byte, error) { return nil, do(a.ring) })
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// fromRing gets the passphrase of a profile from the keyring.
func (a *app) fromRing(ctx context.Context, s *keys.StoredProfile) ([]byte, error) {
	given := make(chan string, 1)
	err := a.withRing(ctx, func(ring keyring) error {
		passphrase, err := ring.Get(s.Keyring())
		given <- passphrase
		return err
	})
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, cli.Fail(fmt.Errorf("the desktop's keyring did not return the passphrase for %s: %w", s.Name, err),
			"log in to the desktop where the host was locked; without that keyring the host needs "+newToken(&s.Profile))
	}
	return []byte(<-given), nil
}
