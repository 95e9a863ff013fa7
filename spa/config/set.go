package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

// Keys returns the keys of server.toml that have a value, by their dotted paths. In place of a service's name they have
// name.
func Keys(name string) []string { return strict.Keys(new(raw), name) }

// A Change is what Set did to server.toml.
type Change struct {
	Was, Is *Config
	Keys    []string // that have changed; none: the file said so already
}

// Set changes settings in dir/server.toml, given as [strict.ParseSettings] reads them: all or none. It keeps comments,
// order and spacing, owner and mode. It writes nothing if Load would refuse the result, or if accept returns an error.
//
// With dry it only returns the change.
func Set(dir string, args []string, dry bool, accept func(*Change) error) (*Change, error) {
	settings, err := strict.ParseSettings(new(raw), args)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	unlock, err := place.Lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	path := filepath.Join(dir, FileName)
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil, &place.FileError{File: path, Text: "a symbolic link, which is not replaced: change the file that it " +
			"leads to"}
	}
	file := undecided()
	doc, err := strict.DecodeFile(path, maxFile, &file)
	if err != nil {
		return nil, err
	}
	c, text, err := changeOf(doc, dir, path, settings)
	if err != nil || len(c.Keys) == 0 {
		return c, err
	}
	if err := accept(c); err != nil || dry {
		return c, err
	}
	return c, place.Replace(path, doc.Text(), text)
}

// changeOf returns the change that the settings make, and the file afterwards.
func changeOf(doc *strict.Document, dir, path string, settings []strict.Setting) (*Change, []byte, error) {
	was, err := Parse(dir, path, doc.Text())
	if err != nil {
		return nil, nil, err
	}
	text, keys, err := doc.Set(settings)
	if err != nil {
		return nil, nil, err
	}
	if len(text) > maxFile {
		return nil, nil, &place.FileError{File: path, Text: fmt.Sprintf("would be larger than %d bytes", maxFile)}
	}
	is, err := Parse(dir, path, text)
	if err != nil {
		return nil, nil, err
	}
	return &Change{Was: was, Is: is, Keys: keys}, text, nil
}
