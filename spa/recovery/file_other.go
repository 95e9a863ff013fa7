//go:build !linux

package recovery

import (
	"errors"
	"os"
)

func machineID() ([]byte, error)              { return nil, errors.ErrUnsupported }
func seal(*os.File, []byte) ([8]byte, error)  { return [8]byte{}, errors.ErrUnsupported }
func openPlain(string, int) (*os.File, error) { return nil, errors.ErrUnsupported }
func create(string) (*os.File, error)         { return nil, errors.ErrUnsupported }
func begin(*os.File) (*os.File, error)        { return nil, errors.ErrUnsupported }
func syncData(*os.File) error                 { return errors.ErrUnsupported }
