package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/pelletier/go-toml/v2"
)

// stateLine is the setting as nearly everybody writes it.
var stateLine = regexp.MustCompile(`(?m)^[ \t]*state[ \t]*=[ \t]*"([^"\\]+)"`)

// StateDir returns the state directory that dir/server.toml names, for who asks a running server:
// also where the rest of the file is wrong, since that is when somebody asks.
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
			file.State = string(line[1])
		}
	}
	if filepath.IsAbs(file.State) {
		return filepath.Clean(file.State), nil
	}
	return filepath.Join(dir, file.State), nil
}

// cause is the error of a file without its name and the system call.
func cause(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	return err
}
