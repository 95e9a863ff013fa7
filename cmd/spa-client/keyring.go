package main

import (
	"context"
	"errors"
	"fmt"

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

// fromRing asks the keyring for a passphrase: it may ask its user first.
func (a *app) fromRing(ctx context.Context, host, name string) ([]byte, error) {
	passphrase, err := interruptible(ctx, func() ([]byte, error) {
		text, err := a.ring.Get(name)
		return []byte(text), err
	})
	if errors.Is(err, context.Canceled) {
		return nil, err
	}
	if err != nil {
		return nil, cli.Fail(fmt.Errorf("the desktop's keyring does not give the passphrase of %s: %w", host, err),
			"log in on the desktop where it was locked; without that keyring the host needs a new token (spa-keygen rotate, at the gateway)")
	}
	return passphrase, nil
}
