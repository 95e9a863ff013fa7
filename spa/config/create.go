package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"

	"sallyport/keys/place"
	"sallyport/keys/strict"
)

// Create writes dir/server.toml for c, 0640, with comments for its next editor. It never overwrites a file
// (place.ErrExists), and writes nothing that Load would not read back as c. Zero values in c mean the default; start
// from Default for Receipts.
func Create(dir string, c Config) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	c = c.filled(dir)
	path := filepath.Join(dir, FileName)
	text := []byte(c.text())
	if err := c.readsBack(path, text); err != nil {
		return err
	}
	return place.WriteNew(path, text)
}

// Check returns what Load would find wrong with c in a file, each problem with its key.
func (c Config) Check() error {
	c = c.filled(c.Dir)
	file := undecided()
	d, err := strict.Decode(FileName, []byte(c.text()), &file)
	if err != nil {
		return err
	}
	l := loader{doc: d, raw: &file, cfg: Default(c.Dir)}
	if _, err := l.load(); err == nil {
		return nil
	}
	found := make([]error, len(l.problems))
	for i, problem := range l.problems {
		found[i] = problem
		if at, ok := errors.AsType[*place.FileError](problem); ok { // there is no file yet that has lines
			found[i] = errors.New(at.Key + ": " + at.Text)
		}
	}
	return errors.Join(found...)
}

// readsBack returns an error unless the file reads back as c.
func (c Config) readsBack(path string, text []byte) error {
	file := undecided()
	d, err := strict.Decode(path, text, &file)
	if err != nil {
		return fmt.Errorf("writing %w", err)
	}
	l := loader{doc: d, raw: &file, cfg: Default(c.Dir)}
	back, err := l.load()
	if err != nil {
		return fmt.Errorf("writing %w", err)
	}
	back.read = nil
	if !reflect.DeepEqual(*back, c) {
		return errors.New("writing " + path + ": it would not read back the same")
	}
	return nil
}

// filled fills in defaults for zero values.
func (c Config) filled(dir string) Config {
	def := Default(dir)
	c.Dir = dir
	c.Window = or(c.Window, def.Window)
	c.State = or(c.State, def.State)
	c.Capture.Mode = or(c.Capture.Mode, def.Capture.Mode)
	c.Capture.Gate = or(c.Capture.Gate, def.Capture.Gate)
	c.Firewall.Backend = or(c.Firewall.Backend, def.Firewall.Backend)
	c.Firewall.Mode = or(c.Firewall.Mode, def.Firewall.Mode)
	c.Firewall.Closed = or(c.Firewall.Closed, def.Firewall.Closed)
	c.Firewall.Persist = or(c.Firewall.Persist, def.Firewall.Persist)
	if !c.Audit.Journal {
		c.Audit.File = or(c.Audit.File, filepath.Join(c.State, "audit.jsonl"))
	}
	c.Limits.LiveNonces = or(c.Limits.LiveNonces, def.Limits.LiveNonces)
	c.Limits.Grants = or(c.Limits.Grants, def.Limits.Grants)
	c.Limits.GrantsPerHour = or(c.Limits.GrantsPerHour, def.Limits.GrantsPerHour)
	c.Fleet = c.Fleet.filled(dir, c.State)
	if len(c.KnockPorts) == 0 {
		c.KnockPorts = def.KnockPorts
	}
	return c.withServices()
}

func or[T comparable](value, def T) T {
	var zero T
	if value == zero {
		return def
	}
	return value
}
