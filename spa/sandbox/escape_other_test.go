//go:build linux && !amd64

package sandbox

import "testing"

func otherInterfaces() map[string]func() error { return nil }

func takes386(*testing.T) bool { return true }
