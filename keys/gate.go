package keys

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

const maxGateFile = 4 << 10

type rawGate struct {
	Version  int64  `toml:"version"`
	Key      string `toml:"key"`
	Previous *struct {
		Key   string    `toml:"key"`
		Until time.Time `toml:"until"`
	} `toml:"previous"`
}

// ReadGate reads the server's gate keys, the newest first: one, or two while clients that
// have not heard of the new one still use the one before.
func ReadGate(path string) ([]GateKey, error) {
	var raw rawGate
	d, err := decodeSecret(folderOf(path), filepath.Base(path), maxGateFile, checkPrivate, &raw, schema{})
	if err != nil {
		return nil, err
	}
	r := reader{doc: d}
	if !r.needs("key") {
		return nil, errors.Join(r.problems...)
	}
	gates := []GateKey{r.gate("key", raw.Key)}
	if raw.Previous != nil && r.needs("previous.key", "previous.until") {
		gates = append(gates, r.gate("previous.key", raw.Previous.Key))
		r.time("previous.until", &raw.Previous.Until)
		if raw.Previous.Key == raw.Key {
			r.must("previous.key", errors.New("is the key that replaced it"))
		}
	}
	if len(r.problems) > 0 {
		return nil, errors.Join(r.problems...)
	}
	return gates, nil
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
