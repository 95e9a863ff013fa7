//go:build !linux

package place

import "os"

// placeUnnamed: no file gets its first name when it is whole.
func placeUnnamed(string, []byte, Placing, Audience) error { return errNamed }

func openUnnamed(string, int) (*os.File, error) { return nil, errNamed }
