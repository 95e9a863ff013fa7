package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"sallyport/keys"
)

// hungRing is a keyring that never answers.
type hungRing struct{ ends chan struct{} }

func (r hungRing) Get(string) (string, error) { <-r.ends; return "", nil }
func (r hungRing) Set(_, _ string) error      { <-r.ends; return nil }
func (r hungRing) Delete(string) error        { <-r.ends; return nil }

// TestHungKeyring: a hung desktop blocks the command only for a limited time, and Ctrl-C ends it at once.
func TestHungKeyring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := hungRing{make(chan struct{})}
		defer close(ring.ends)
		a := &app{ring: ring}
		s := &keys.StoredProfile{Profile: keys.Profile{Name: "gw"}}
		_, err := a.fromRing(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), "passphrase for gw: it did not answer within 2m0s") {
			t.Errorf("got %v, want that the keyring did not answer", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.fromRing(ctx, s); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: got %v", err)
		}
	})
}
