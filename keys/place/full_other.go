//go:build !unix

package place

import "errors"

func isFull(error) bool { return false }

func rewrite(string, []byte, []byte) error { return errors.ErrUnsupported }
