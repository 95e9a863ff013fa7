package lab

import "testing"

// Must ends the test if there is an error.
func Must(t testing.TB, err error) {
	if err != nil {
		t.Helper() // only now: it takes longer than what some benchmarks measure
		t.Fatal(err)
	}
}

// Value returns the value of a call that must succeed, as in
//
//	text := lab.Value(os.ReadFile(path))(t)
func Value[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		Must(t, err)
		return v
	}
}
