package keys

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sallyport/keys/service"
)

// ChangeClient lets change alter the client of dir/NAME.toml, and writes it in the place of the
// one before, whole or not at all, for whom WriteClient writes. An error of change ends it
// with nothing written. It returns the client as it is now.
//
// Two programs that change a file do it one after the other, so that none undoes what the
// other did: who is revoked stays it. Comments and the order of lines stay too, where only
// what a rotation or a revocation changes is different.
func ChangeClient(dir, name string, change func(*Client) error) (*Client, error) {
	if err := service.ValidName(name); err != nil {
		return nil, err // also what would lead out of the directory
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	before, doc, err := readClientDoc(folder{path: dir}, name+Suffix, checkPrivate, schema{})
	if err != nil {
		return nil, err
	}
	after := *before
	if err := change(&after); err != nil {
		return nil, err
	}
	text := after.text()
	if err := readsBack(doc.path, text); err != nil {
		return nil, fmt.Errorf("writing %s: %w", doc.path, err)
	}
	if amended, ok := doc.amendClient(before, &after); ok {
		text = amended
	}
	if err := placeOver(doc.path, doc.data, text); err != nil {
		return nil, err
	}
	return &after, nil
}

// ChangeGates is ChangeClient for the gate keys of a server.
func ChangeGates(path string, change func(*Gates) error) (Gates, error) {
	path = filepath.Clean(path)
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return Gates{}, err
	}
	defer unlock()
	before, doc, err := readGateDoc(folderOf(path), filepath.Base(path))
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
	if amended, ok := doc.amendGates(before, after); ok {
		text = amended
	}
	if err := placeOver(path, doc.data, text); err != nil {
		return Gates{}, err
	}
	return after, nil
}

// Rotate gives the client a new id and key. The present ones become the previous, which are
// good until then; what was the previous key before is no key any more.
func (c *Client) Rotate(until time.Time) {
	c.Previous = &Previous{ID: c.ID, Key: c.Key, Until: until}
	c.ID, c.Key = NewID(), NewKey()
}

// A setting is a line of a file as programs change it. Without a value the line is not there.
type setting struct{ key, value string }

func (c *Client) settings() []setting {
	s := []setting{{"id", quoted(c.ID.String())}, {"key", quoted(c.Key.Reveal())}, {"previous", ""}, {"revoked", ""}}
	if c.Previous != nil {
		s[2].value = c.Previous.text()
	}
	if !c.Revoked.IsZero() {
		s[3].value = timeText(c.Revoked)
	}
	return s
}

func (g Gates) settings() []setting {
	s := []setting{{"key", quoted(g.Current.Reveal())}, {"previous", ""}}
	if !g.Previous.IsZero() {
		s[1].value = g.previousText()
	}
	return s
}

func quoted(s string) string { return `"` + s + `"` }

// amendClient returns the file with the changed lines alone replaced. The proof is in what
// it then says: exactly the client that it is to be, or the file is written anew.
func (d *Document) amendClient(before, after *Client) ([]byte, bool) {
	text := d.amend(before.settings(), after.settings())
	var raw rawClient
	doc, err := decode(d.path, text, &raw, schema{})
	if err != nil {
		return nil, false
	}
	c, err := raw.client(doc, after.Name)
	return text, err == nil && bytes.Equal(c.text(), after.text())
}

func (d *Document) amendGates(before, after Gates) ([]byte, bool) {
	text := d.amend(before.settings(), after.settings())
	g, err := parseGates(d.path, text)
	return text, err == nil && bytes.Equal(g.text(), after.text())
}

// amend replaces the lines of the settings that differ. It takes for granted that a value
// stands on its key's line, and that no "#" is in it: whoever calls it finds out.
func (d *Document) amend(before, after []setting) []byte {
	text := Document{path: d.path, data: d.data}
	for i, s := range after {
		if s.value == before[i].value {
			continue
		}
		text.data = text.withLine(s)
	}
	return text.data
}

// withLine returns the file with a setting's line: in its place, keeping the comment that
// ends it, or after the line of the key where there is none yet.
func (d *Document) withLine(s setting) []byte {
	lines := strings.SplitAfter(string(d.data), "\n")
	line := s.key + " = " + s.value + "\n"
	at := d.line(s.key)
	switch {
	case at == 0 && s.value == "":
		return d.data
	case at == 0:
		at = d.line("key")
		lines[at-1] = strings.TrimRight(lines[at-1], "\n") + "\n"
		lines = slices.Insert(lines, at, line)
	case s.value == "":
		lines = slices.Delete(lines, at-1, at)
	default:
		if _, comment, ok := strings.Cut(lines[at-1], "#"); ok {
			line = s.key + " = " + s.value + "  #" + strings.TrimRight(comment, "\r\n") + "\n"
		}
		lines[at-1] = line
	}
	return []byte(strings.Join(lines, ""))
}
