package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	desktopring "github.com/zalando/go-keyring"

	"sallyport/cmd/internal/cli"
)

// A keyring keeps passphrases under names for as long as the user is logged in.
type keyring interface {
	Get(name string) (string, error)
	Set(name, passphrase string) error
	Delete(name string) error
}

// desktop is the keyring of the user's desktop: the Secret Service on Linux and FreeBSD, the
// Keychain on macOS, the Credential Manager on Windows.
type desktop struct{}

const ringService = "spa-client"

func (desktop) Get(name string) (string, error) { return desktopring.Get(ringService, name) }
func (desktop) Set(name, passphrase string) error {
	return desktopring.Set(ringService, name, passphrase)
}
func (desktop) Delete(name string) error { return desktopring.Delete(ringService, name) }

// ringAnswers is how long a keyring has to answer: it may ask its user to unlock it first, and
// it may hang.
const ringAnswers = 2 * time.Minute

// withRing does something with the keyring, unless ctx ends before or it does not answer in time.
func (a *app) withRing(ctx context.Context, do func(keyring) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ringAnswers, fmt.Errorf("it did not answer within %v", ringAnswers))
	defer cancel()
	_, err := interruptible(ctx, func() ([]byte, error) { return nil, do(a.ring) })
	if errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// fromRing asks the keyring for a passphrase.
func (a *app) fromRing(ctx context.Context, host, name string) ([]byte, error) {
	given := make(chan string, 1)
	err := a.withRing(ctx, func(ring keyring) error {
		passphrase, err := ring.Get(name)
		given <- passphrase
		return err
	})
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, cli.Fail(fmt.Errorf("the desktop's keyring did not return the passphrase of %s: %w", host, err),
			"log in to the desktop where the host was locked; without that keyring it needs a new token (spa-keygen "+
				"rotate, on the gateway)")
	}
	return []byte(<-given), nil
}
