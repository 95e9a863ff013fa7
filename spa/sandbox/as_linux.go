package sandbox

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

func as(name string, do func() error) error {
	who, err := choose(name)
	if err != nil || !who.change {
		return do()
	}
	root, err := enter(who)
	if err != nil {
		if err := root.back(); err != nil {
			return err
		}
		return do()
	}
	return errors.Join(do(), root.back())
}

// way is a way back to a former identity: the changes to undo, the latest last.
type way []func() error

// enter changes the effective user and group, and clears the groups, on all threads. If a step fails, the returned way
// undoes the earlier ones.
func enter(who identity) (way, error) {
	var root way
	groups, err := syscall.Getgroups()
	if err != nil {
		return root, err
	}
	gid := os.Getegid()
	for _, step := range []struct{ there, back func() error }{
		{func() error { return syscall.Setgroups(nil) }, func() error { return syscall.Setgroups(groups) }},
		{func() error { return syscall.Setresgid(-1, who.gid, -1) }, func() error { return syscall.Setresgid(-1, gid, -1) }},
		{func() error { return syscall.Setresuid(-1, who.uid, -1) }, func() error { return syscall.Setresuid(-1, 0, -1) }},
	} {
		if err := step.there(); err != nil {
			return root, err
		}
		root = append(root, step.back)
	}
	return root, nil
}

func (w way) back() error {
	for i := len(w) - 1; i >= 0; i-- {
		if err := w[i](); err != nil {
			return fmt.Errorf("becoming root again: %w", err)
		}
	}
	return nil
}
