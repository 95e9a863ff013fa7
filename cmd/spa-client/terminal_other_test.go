//go:build !linux

package main

import "github.com/rogpeppe/go-internal/testscript"

// terminalCommand does nothing here: the script that uses it stops before.
func terminalCommand(ts *testscript.TestScript, neg bool, args []string) {
	ts.Fatalf("there are no pseudo-terminals here")
}
