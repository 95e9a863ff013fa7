package office

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"sallyport/keys/place"
)

// maxIdentity is more than the file of an identity has.
const maxIdentity = 1 << 16

// ErrPassphrase means that a passphrase does not open an identity.
var ErrPassphrase = errors.New("wrong passphrase")

// NewIdentity makes an administrator's identity in a new file that only its owner can read, sealed with a passphrase
// unless that is empty.
func NewIdentity(path string, passphrase []byte) (*age.HybridIdentity, error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return nil, fmt.Errorf("making an identity: %w", err)
	}
	text := []byte("# An administrator of a fleet: spa-fleet(8). It is a secret: nobody else may read this file.\n" +
		id.String() + "\n")
	if len(passphrase) > 0 {
		r, err := age.NewScryptRecipient(string(passphrase))
		if err != nil {
			return nil, fmt.Errorf("sealing the identity: %w", err)
		}
		if text, err = sealTo(text, r); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making a directory: %w", err)
	}
	return id, place.Write(path, text, place.OnlyNew, place.ForOwner)
}

// ReadIdentity reads an administrator's identity. It calls ask, as often as that returns a passphrase, if the file is
// sealed. Its errors quote no secret.
func ReadIdentity(path string, ask func(wrong bool) ([]byte, error)) (*age.HybridIdentity, error) {
	text, err := place.FolderOf(path).Read(filepath.Base(path), maxIdentity, place.Own)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(text, []byte(armor.Header)) {
		return parseIdentity(path, text)
	}
	for wrong := false; ; wrong = true {
		passphrase, err := ask(wrong)
		if err != nil {
			return nil, err
		}
		id, err := age.NewScryptIdentity(string(passphrase))
		if err != nil {
			continue // an empty one
		}
		open, err := unseal(path, text, id)
		if errors.Is(err, errNotFor) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return parseIdentity(path, open)
	}
}

func parseIdentity(path string, text []byte) (*age.HybridIdentity, error) {
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, err := age.ParseHybridIdentity(line)
		if err != nil || id.String() != line {
			break
		}
		return id, nil
	}
	return nil, problem(path, "not an identity: it should have a line AGE-SECRET-KEY-PQ-1 and so on")
}
