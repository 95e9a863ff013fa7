//go:build !linux

package sandbox

import (
	"errors"
	"fmt"
)

func drop(string, Files) (State, error) {
	return State{}, fmt.Errorf("dropping privileges: %w", errors.ErrUnsupported)
}

func dropForPrograms(Files) (State, error) { return drop("", Files{}) }

func dropAll() (State, error) { return drop("", Files{}) }

func lacks() []string { return nil }

func require(bool) error {
	return fmt.Errorf("capabilities: %w", errors.ErrUnsupported)
}

func becomes(string) (uid, gid int, err error) {
	return 0, 0, fmt.Errorf("the system user: %w", errors.ErrUnsupported)
}

func as(_ string, do func() error) error { return do() }
