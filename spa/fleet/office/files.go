package office

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/keys/service"
)

// The files of an office.
const (
	officeFile    = "office.toml"
	vaultFile     = "vault.age"
	publishedFile = "published.toml"
	spoolFile     = "bundles" // the name of none: see place.Scratch
	adminsDir     = "admins"
	gatewaysDir   = "gateways"
	clientsDir    = "clients"
)

// sealedSuffix ends the names of sealed files.
const sealedSuffix = ".age"

// Files are larger than these only by mistake.
const (
	maxFile      = 1 << 20
	maxPublished = 1 << 28 // 100 bytes for each client
)

// problem returns an error about a file.
func problem(path, format string, args ...any) error {
	return &place.FileError{File: path, Text: fmt.Sprintf(format, args...)}
}

// read reads a file, unless git has left a conflict in it.
func read(path string, limit int64) ([]byte, error) {
	text, err := place.ReadFile(path, limit)
	if err != nil {
		return nil, err
	}
	line := 0
	for l := range bytes.Lines(text) {
		line++
		if bytes.HasPrefix(l, []byte("<<<<<<< ")) || bytes.HasPrefix(l, []byte(">>>>>>> ")) {
			return nil, &place.FileError{File: path, Line: line, Text: "a merge conflict that nobody has resolved"}
		}
	}
	return text, nil
}

// names returns the names of the files in a directory that end in suffix, sorted. A missing directory has none: git
// does not keep empty ones.
func names(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	var list []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		if err := service.ValidName(name); err != nil {
			return nil, problem(filepath.Join(dir, e.Name()), "not the name of a file here: %v", err)
		}
		list = append(list, name)
	}
	return list, nil
}

// write writes a file of an office, whose lock the caller holds, and the directory in which it is.
func write(path string, text []byte, how place.Placing) error {
	whom := place.ForReaders
	if strings.HasSuffix(path, sealedSuffix) {
		whom = place.ForOwner
	}
	if err := os.Mkdir(filepath.Dir(path), 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making a directory: %w", err)
	}
	return place.WriteLocked(path, text, how, whom)
}

// remove removes a file that may be missing.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing a file: %w", err)
	}
	return nil
}

// seal seals text to recipients.
func seal(text []byte, to ...*age.HybridRecipient) ([]byte, error) {
	list := make([]age.Recipient, len(to))
	for i, r := range to {
		list[i] = r
	}
	return sealTo(text, list...)
}

func sealTo(text []byte, to ...age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	armored := armor.NewWriter(&b)
	w, err := age.Encrypt(armored, to...)
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if _, err := w.Write(text); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	return b.Bytes(), nil
}

// errNotFor means that a sealed file is whole but sealed to other recipients.
var errNotFor = errors.New("sealed to others")

// unseal opens the sealed file at path. It quotes nothing.
func unseal(path string, text []byte, by ...age.Identity) ([]byte, error) {
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(text)), by...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, errNotFor
	}
	if err == nil {
		text, err = io.ReadAll(r)
	}
	if err != nil {
		return nil, problem(path, "damaged: it is not a whole sealed file")
	}
	return text, nil
}

func (o *Office) path(parts ...string) string {
	return filepath.Join(append([]string{o.Dir}, parts...)...)
}

func (o *Office) adminPath(name string) string   { return o.path(adminsDir, name+keys.Suffix) }
func (o *Office) gatewayPath(name string) string { return o.path(gatewaysDir, name+keys.Suffix) }
func (o *Office) termsPath(name string) string   { return o.path(clientsDir, name+keys.Suffix) }
func (o *Office) keyPath(name string) string     { return o.path(clientsDir, name+sealedSuffix) }
