package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// stateLine matches the setting with its value on one line, as a basic or a literal string of TOML.
var stateLine = regexp.MustCompile(`(?m)^[ \t]*(?:state|"state"|'state')[ \t]*=[ \t]*("(?:[^"\\\n]|\\.)+"|'[^'\n]+')`)

// StateDir returns the state directory that dir/server.toml names, to find a running server: even if the rest of the
// file is wrong, since that is when people look.
func StateDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(dir, FileName))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", filepath.Join(dir, FileName), cause(err))
	}
	file := struct {
		State string `toml:"state"`
	}{State: "."}
	if err := toml.Unmarshal(data, &file); err != nil { // what comes after the mistake is not read
		if line := stateLine.FindSubmatch(data); line != nil {
			err = toml.Unmarshal(slices.Concat([]byte("state = "), line[1]), &file)
		}
		if err != nil || file.State == "" {
			file.State = "."
		}
	}
	if filepath.IsAbs(file.State) {
		return filepath.Clean(file.State), nil
	}
	return filepath.Join(dir, file.State), nil
}

// cause returns a file error without the file's name and the system call.
func cause(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	return err
}

// versionLine matches the setting that every file has.
var versionLine = regexp.MustCompile(`(?m)^[ \t]*(?:version|"version"|'version')[ \t]*=[^\n]*\n`)

// WithState returns the text of a server.toml with another state directory, an absolute path, and all else as it is. It
// returns an error if it cannot tell where the setting goes.
func WithState(dir string, text []byte, state string) ([]byte, error) {
	value := []byte(quote(state))
	var changed []byte
	if at := stateLine.FindSubmatchIndex(text); at != nil {
		changed = slices.Concat(text[:at[2]], value, text[at[3]:])
	} else if at := versionLine.FindIndex(text); at != nil {
		changed = slices.Concat(text[:at[1]], []byte("state = "), value, []byte("\n"), text[at[1]:])
	}
	path := filepath.Join(dir, FileName)
	before, err := Parse(dir, path, text)
	if err != nil {
		return nil, err
	}
	after, err := Parse(dir, path, changed)
	if err == nil && after.State == filepath.Clean(state) && after.ServerID == before.ServerID {
		return changed, nil
	}
	return nil, fmt.Errorf("%s: cannot find the setting state: write state = %s into it, below version", path, value)
}
