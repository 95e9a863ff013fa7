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
