package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Version is the version of every file that Sallyport writes and reads.
const Version = 1

// A FileError says what is wrong with a file, and where. Its text begins with the file's
// path, and it never holds a value that may be a secret.
type FileError struct {
	File       string
	Line       int    // from 1; 0 where there is no line to name
	Key        string // dotted: "limits.grants"; or empty
	Text       string // what is wrong
	Suggestion string // the key that was probably meant; or empty
}

// Error returns "FILE:LINE: KEY: what is wrong".
func (e *FileError) Error() string {
	var b strings.Builder
	b.WriteString(e.Place())
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Text)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, " (did you mean %q?)", e.Suggestion)
	}
	return b.String()
}

// Place returns "FILE:LINE", or the file where there is no line to name.
func (e *FileError) Place() string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d", e.File, e.Line)
}

// A Document is a TOML file that was decoded, and knows the lines of its keys.
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
	f, err := openFile(path)
	if err != nil {
		return nil, readError(err)
	}
	defer f.Close()
	data, err := readRegular(f, path, limit, nil)
	if err != nil {
		return nil, err
	}
	return decode(path, data, dst, schema{})
}

// decodeSecret is DecodeFile for files with secrets: it follows no symbolic link, which a
// later write by rename would replace, and asks check before it reads a byte.
func decodeSecret(d folder, file string, limit int64, check accessCheck, dst any, s schema) (*Document, error) {
	path := filepath.Join(d.path, file)
	f, err := d.openNoFollow(file)
	if err != nil {
		return nil, readError(d.denied(path, err))
	}
	defer f.Close()
	data, err := readRegular(f, path, limit, func(fi fs.FileInfo) error { return check(d, path, fi) })
	if err != nil {
		return nil, err
	}
	return decode(path, data, dst, s)
}

// An accessCheck refuses a file in d that the wrong people have access to.
type accessCheck func(d folder, path string, fi fs.FileInfo) error

// A folder is the directory of files with secrets. With a root they are reached through
// it, whatever the directories above allow; path is then only its name.
type folder struct {
	path  string
	root  *os.Root
	owner string // user:group by name, as far as it was looked up
}

// folderOf is the directory of a file, reached by its path.
func folderOf(path string) folder { return folder{path: filepath.Dir(path)} }

func (d folder) stat() (fs.FileInfo, error) {
	if d.root != nil {
		return d.root.Stat(".")
	}
	return os.Stat(d.path)
}

// openFlags is os.OpenFile in the folder. Its error has the whole path.
func (d folder) openFlags(file string, flags int) (*os.File, error) {
	path := filepath.Join(d.path, file)
	if d.root == nil {
		return os.OpenFile(path, flags, 0)
	}
	f, err := d.root.OpenFile(file, flags, 0)
	var at *fs.PathError
	if errors.As(err, &at) {
		return nil, &fs.PathError{Op: "open", Path: path, Err: at.Err}
	}
	return f, err
}

// readRegular reads a whole file, but refuses what would block or never end.
func readRegular(f *os.File, path string, limit int64, check func(fs.FileInfo) error) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, readError(err)
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{File: path, Text: "not a regular file"}
	}
	if check != nil {
		if err := check(fi); err != nil {
			return nil, err
		}
	}
	if fi.Size() > limit {
		return nil, &FileError{File: path, Text: fmt.Sprintf("larger than %d bytes", limit)}
	}
	data := make([]byte, fi.Size())
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return data, nil
}

// readError says which file could not be read, without naming the system call.
func readError(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("reading %s: %w", at.Path, at.Err)
	}
	if errors.Is(err, ErrUnreadable) {
		return err
	}
	return fmt.Errorf("reading %w", err)
}

func decode(path string, data []byte, dst any, s schema) (*Document, error) {
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

// syntax turns an error of the TOML decoder into a FileError. What the decoder says of a
// value may quote it, so only its words about form are kept.
func (d *Document) syntax(err error) error {
	e := &FileError{File: d.path, Text: "not valid TOML"}
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return e
	}
	e.Line, _ = at.Position()
	e.Text = "not valid TOML: " + wordsOnly(strings.TrimPrefix(at.Error(), "toml: "))
	return e
}

// wordsOnly cuts a decoder's message before the first thing that it quotes.
func wordsOnly(text string) string {
	for _, quoting := range []string{" but got", " U+", ": "} {
		text, _, _ = strings.Cut(text, quoting)
	}
	return text
}

// Problem returns an error about a key, named by its dotted path: "service.ssh.ports".
// The line of a key that is missing is its table's.
func (d *Document) Problem(key, format string, args ...any) *FileError {
	line := d.line(key)
	if dot := strings.LastIndexByte(key, '.'); line == 0 && dot > 0 {
		line = d.line(key[:dot])
	}
	return &FileError{File: d.path, Line: line, Key: key, Text: fmt.Sprintf(format, args...)}
}

// Text returns the file as it was read.
func (d *Document) Text() []byte { return d.data }

// Has reports whether the file has this key, named by its dotted path.
func (d *Document) Has(key string) bool { return d.line(key) > 0 }

// Decode is DecodeFile for the contents of a file that is not on disk yet; path is the
// name for errors.
func Decode(path string, data []byte, dst any) (*Document, error) {
	return decode(path, data, dst, schema{})
}
