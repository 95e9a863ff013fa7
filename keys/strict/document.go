// Package strict decodes TOML files strictly: an unknown key, a wrong type or a missing version is an error that
// names the file, the line and the key, and never quotes a value, which may be a secret.
package strict

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"sallyport/keys/place"
)

// Version is the version of every file that Sallyport writes and reads.
const Version = 1

// A Document is a decoded TOML file that knows the lines of its keys.
type Document struct {
	path string
	data []byte
}

// DecodeFile reads the TOML file at path, of at most limit bytes, into the struct that dst
// points to. It is strict: every key must have a field whose toml tag is exactly the key,
// every value the field's type, every time its zone, and version must be Version.
// Fields may be of type string, bool, int64, time.Time, any, and structs, pointers, slices
// and string maps of these. All problems are reported at once, each a *FileError, joined.
func DecodeFile(path string, limit int64, dst any) (*Document, error) {
	data, err := place.ReadFile(path, limit)
	if err != nil {
		return nil, err
	}
	return Decode(path, data, dst)
}

// Decode is like the function Decode, and reuses the fields that it has looked up before.
func (s Schema) Decode(path string, data []byte, dst any) (*Document, error) {
	d := &Document{path: path, data: data}
	if err := d.check(dst, s); err != nil {
		return nil, err
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(dst); err != nil {
		return nil, d.syntax(err)
	}
	return d, nil
}

// syntax turns an error of the TOML decoder into a FileError. The decoder may quote a value, so only its words about
// syntax are kept.
func (d *Document) syntax(err error) error {
	e := &place.FileError{File: d.path, Text: "not valid TOML"}
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return e
	}
	e.Line, _ = at.Position()
	e.Text = "not valid TOML: " + wordsOnly(strings.TrimPrefix(at.Error(), "toml: "))
	return e
}

// wordsOnly cuts the decoder's message before the first quotation.
func wordsOnly(text string) string {
	for _, quoting := range []string{" but got", " U+", ": "} {
		text, _, _ = strings.Cut(text, quoting)
	}
	return text
}

// Problem returns an error about a key, named by its dotted path: "service.ssh.ports". For a missing key the line is
// that of its table.
func (d *Document) Problem(key, format string, args ...any) *place.FileError {
	line := d.line(key)
	if dot := strings.LastIndexByte(key, '.'); line == 0 && dot > 0 {
		line = d.line(key[:dot])
	}
	return &place.FileError{File: d.path, Line: line, Key: key, Text: fmt.Sprintf(format, args...)}
}

// Text returns the file as it was read.
func (d *Document) Text() []byte { return d.data }

// Has reports whether the file has this key, named by its dotted path.
func (d *Document) Has(key string) bool { return d.line(key) > 0 }

// Decode is DecodeFile for the contents of a file that is not on disk yet; path is the
// name for errors.
func Decode(path string, data []byte, dst any) (*Document, error) {
	return Schema{}.Decode(path, data, dst)
}

// DecodeFileIn is DecodeFile for a file in a directory that was opened earlier, at the path dir. It works even if this
// user may no longer search the directories above.
func DecodeFileIn(root *os.Root, dir, file string, limit int64, dst any) (*Document, error) {
	d, err := DecodeFile(filepath.Join(dir, file), limit, dst)
	if !errors.Is(err, fs.ErrPermission) {
		return d, err // also of a link that leads out of the directory
	}
	data, err := place.Folder{Path: dir, Root: root}.Read(file, limit, nil)
	if err != nil {
		return nil, err
	}
	return Decode(filepath.Join(dir, file), data, dst)
}
