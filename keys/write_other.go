//go:build !linux

package keys

// placeUnnamed: no file gets its first name when it is whole.
func placeUnnamed(string, []byte, placing, audience) error { return errNamed }
