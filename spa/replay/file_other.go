//go:build !linux

package replay

import (
	"errors"
	"fmt"
	"os"
)

type osFile struct{ *os.File }

var errLinux = fmt.Errorf("the journal needs Linux: %w", errors.ErrUnsupported)

func openFile(string) (osFile, error)   { return osFile{}, errLinux }
func createFile(string) (osFile, error) { return osFile{}, errLinux }
func syncDir(string) error              { return errLinux }
func (osFile) Size() (int64, error)     { return 0, errLinux }
func (osFile) Grow(_, _ int64) error    { return errLinux }
func bootID() (string, error)           { return "", errLinux }
func machineID() (string, error)        { return "", errLinux }
