package keys

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"sallyport/keys/place"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

// ChangeClient reads dir/NAME.toml, calls change, and writes the result as WriteClient does: whole or not at all. If
// change returns an error nothing is written. It returns the client as it is now.
//
// Programs that change files take turns, so that none undoes another's change: a revoked client stays revoked. A
// rotation or a revocation keeps the file's comments and the order of its lines.
func ChangeClient(dir, name string, change func(*Client) error) (*Client, error) {
	if err := service.ValidName(name); err != nil {
		return nil, err // including a name that leads out of the directory
	}
	unlock, err := place.Lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := filepath.Join(dir, name+Suffix)
	before, doc, err := readClientDoc(place.Folder{Path: dir}, name+Suffix, place.Private, strict.Schema{})
	if err != nil {
		return nil, err
	}
	after := *before
	if err := change(&after); err != nil {
		return nil, err
	}
	text := after.text()
	if err := readsBack(path, text); err != nil {
		return nil, fmt.Errorf("writing %s: %w", path, err)
	}
	if amended, ok := amendedClient(path, doc, before, &after); ok {
		text = amended
	}
	if err := place.Overwrite(path, doc.Text(), text); err != nil {
		return nil, err
	}
	return &after, nil
}

// ChangeGates is ChangeClient for the gate keys of a server.
func ChangeGates(path string, change func(*Gates) error) (Gates, error) {
	path = filepath.Clean(path)
	unlock, err := place.Lock(filepath.Dir(path))
	if err != nil {
		return Gates{}, err
	}
	defer unlock()
	before, doc, err := readGateDoc(place.FolderOf(path), filepath.Base(path))
	if err != nil {
		return Gates{}, err
	}
	after := before
	if err := change(&after); err != nil {
		return Gates{}, err
	}
	text := after.text()
	if _, err := parseGates(path, text); err != nil {
		return Gates{}, fmt.Errorf("writing %s: %w", path, err)
	}
	if amended, ok := amendedGates(path, doc, before, after); ok {
		text = amended
	}
	if err := place.Overwrite(path, doc.Text(), text); err != nil {
		return Gates{}, err
	}
	return after, nil
}

// How long spa-keygen lets a replaced key stay valid unless it is told otherwise.
const (
	ClientOverlap = 7 * 24 * time.Hour
	GateOverlap   = 30 * 24 * time.Hour
)

// Rotate gives the client a new id and key. The current ones become the previous ones, which are valid until then. An
// earlier previous key is dropped.
func (c *Client) Rotate(until time.Time) {
	c.Previous = &Previous{ID: c.ID, Key: c.Key, Until: until}
	c.ID, c.Key = NewID(), NewKey()
}

func (c *Client) settings() []strict.Setting {
	id := strict.Setting{Key: "id", Value: quoted(c.ID.String())}
	key := strict.Setting{Key: "key", Value: quoted(c.Key.Reveal())}
	previous, revoked := strict.Setting{Key: "previous"}, strict.Setting{Key: "revoked"}
	if c.Previous != nil {
		previous.Value = c.Previous.text()
	}
	if !c.Revoked.IsZero() {
		revoked.Value = timeText(c.Revoked)
	}
	return []strict.Setting{id, key, previous, revoked}
}

func (g Gates) settings() []strict.Setting {
	key, previous := strict.Setting{Key: "key", Value: quoted(g.Current.Reveal())}, strict.Setting{Key: "previous"}
	if !g.Previous.IsZero() {
		previous.Value = g.previousText()
	}
	return []strict.Setting{key, previous}
}

func quoted(s string) string { return `"` + s + `"` }

// amendedClient returns the file with only the changed lines replaced, so that what people wrote into it stays. It
// returns false if the result does not say exactly what after does.
func amendedClient(path string, d *strict.Document, before, after *Client) ([]byte, bool) {
	text := d.Amend(before.settings(), after.settings())
	c, err := clientOf(path, after.Name, text)
	return text, err == nil && bytes.Equal(c.text(), after.text())
}

func amendedGates(path string, d *strict.Document, before, after Gates) ([]byte, bool) {
	text := d.Amend(before.settings(), after.settings())
	g, err := parseGates(path, text)
	return text, err == nil && bytes.Equal(g.text(), after.text())
}

// Sweep removes the hidden files that killed programs left beside dir/NAME.toml, with the keys that they failed to
// write; without a name, beside every file in dir. It returns their number. A missing directory is no error.
func Sweep(dir, name string) (int, error) {
	if name == "" {
		return place.Sweep(dir, func(file string) bool { return strings.HasSuffix(file, Suffix) })
	}
	if err := service.ValidName(name); err != nil {
		return 0, err
	}
	return place.Sweep(dir, func(file string) bool { return file == name+Suffix })
}
