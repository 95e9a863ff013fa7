package keys

import (
	"errors"
	"fmt"
	"path/filepath"
)

const maxGateFile = 4 << 10

type rawGate struct {
	Version int64  `toml:"version"`
	Key     string `toml:"key"`
}

// ReadGate reads the server's gate key.
func ReadGate(path string) (GateKey, error) {
	var raw rawGate
	d, err := decodeSecret(folderOf(path), filepath.Base(path), maxGateFile, checkPrivate, &raw, schema{})
	if err != nil {
		return GateKey{}, err
	}
	r := reader{doc: d}
	if !r.needs("key") {
		return GateKey{}, errors.Join(r.problems...)
	}
	gate := r.gate("key", raw.Key)
	if len(r.problems) > 0 {
		return GateKey{}, errors.Join(r.problems...)
	}
	return gate, nil
}

func (r *reader) gate(key, text string) GateKey {
	g, err := ParseGateKey(text)
	r.must(key, err)
	return g
}

// WriteGate writes the gate key of a new server to path, whole or not at all, for the
// reader that WriteClient writes for. It never writes over an existing file (ErrExists).
func WriteGate(path string, g GateKey) error {
	if g.IsZero() {
		return fmt.Errorf("writing %s: keys: there is no gate key", path)
	}
	text := fmt.Sprintf("# Shared by all clients of this gateway. It is a secret: nobody else may read this file.\nversion = %d\nkey = \"%s\"\n", Version, g.Reveal())
	return place(filepath.Clean(path), []byte(text), onlyNew, forService)
}
