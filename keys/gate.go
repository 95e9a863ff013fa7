package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

const maxGateFile = 4 << 10

// Gates are the gate keys of a server: the current one and, during a rotation, the previous one.
type Gates struct {
	Current  GateKey
	Previous GateKey   // what Current replaced, or no key
	Until    time.Time // from then on Previous lets nothing in; zero without one
}

// Rotate makes a new key. The current one becomes the previous one, which is valid until then. An earlier previous key
// is dropped.
func (g *Gates) Rotate(until time.Time) {
	*g = Gates{Current: NewGateKey(), Previous: g.Current, Until: until}
}

type rawGate struct {
	Version  int64            `toml:"version"`
	Key      string           `toml:"key"`
	Previous *rawPreviousGate `toml:"previous"`
}

type rawPreviousGate struct {
	Key   string    `toml:"key"`
	Until time.Time `toml:"until"`
}

// ReadGate reads the server's gate keys. Its errors are those of ReadClient.
func ReadGate(path string) (Gates, error) {
	return readGate(place.FolderOf(path), filepath.Base(path))
}

// ReadGateIn is ReadGate for a file in a directory that was opened earlier, at the path dir. It works after privileges
// were dropped.
func ReadGateIn(root *os.Root, dir, file string) (Gates, error) {
	return readGate(place.Folder{Path: dir, Root: root}, file)
}

func readGate(d place.Folder, file string) (Gates, error) {
	g, _, err := readGateDoc(d, file)
	return g, err
}

func readGateDoc(d place.Folder, file string) (Gates, *strict.Document, error) {
	var raw rawGate
	doc, err := readSecret(d, file, maxGateFile, place.Private, &raw, strict.Schema{})
	if err != nil {
		return Gates{}, nil, err
	}
	g, err := raw.gates(doc)
	return g, doc, err
}

func parseGates(path string, text []byte) (Gates, error) {
	var raw rawGate
	d, err := strict.Decode(path, text, &raw)
	if err != nil {
		return Gates{}, err
	}
	return raw.gates(d)
}

func (raw *rawGate) gates(d *strict.Document) (Gates, error) {
	r := reader{doc: d}
	if !r.needs("key") {
		return Gates{}, errors.Join(r.problems...)
	}
	g := Gates{Current: r.gate("key", raw.Key)}
	if p := raw.Previous; p != nil && r.needs("previous.key", "previous.until") {
		g.Previous, g.Until = r.gate("previous.key", p.Key), r.time("previous.until", &p.Until)
		if p.Key == raw.Key {
			r.must("previous.key", errors.New("is the current key: a previous key is another"))
		}
	}
	if len(r.problems) > 0 {
		return Gates{}, errors.Join(r.problems...)
	}
	return g, nil
}

func (r *reader) gate(key, text string) GateKey {
	g, err := ParseGateKey(text)
	r.must(key, err)
	return g
}

// WriteGate writes the gate key of a new server to path, as WriteClient does. It never overwrites a file
// (place.ErrExists).
func WriteGate(path string, g GateKey) error {
	if g.IsZero() {
		return fmt.Errorf("writing %s: keys: there is no gate key", path)
	}
	return place.Write(filepath.Clean(path), Gates{Current: g}.text(), place.OnlyNew, place.ForService)
}

// text returns the file with the gate keys.
func (g Gates) text() []byte {
	var b bytes.Buffer
	b.WriteString("# Shared by all clients of this gateway. It is a secret: nobody else may read this file.\n")
	fmt.Fprintf(&b, "version = %d\nkey = \"%s\"\n", strict.Version, g.Current.Reveal())
	if !g.Previous.IsZero() {
		fmt.Fprintf(&b, "previous = %s\n", g.previousText())
	}
	return b.Bytes()
}

func (g Gates) previousText() string {
	return fmt.Sprintf("{ key = \"%s\", until = %s }", g.Previous.Reveal(), timeText(g.Until))
}
