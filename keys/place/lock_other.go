//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package place

// Where no gateway runs, one person changes one file.
func Lock(string) (unlock func(), err error) { return func() {}, nil }
