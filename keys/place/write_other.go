//go:build !linux

package place

// placeUnnamed: no file gets its first name when it is whole.
func placeUnnamed(string, []byte, Placing, Audience) error { return errNamed }
