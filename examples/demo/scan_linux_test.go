package main

import (
	"os"
	"strings"
	"testing"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

// TestScan: the scan finds an open port and distinguishes it from closed ones; an open port that should be dark breaks
// the promise.
func TestScan(t *testing.T) {
	client, gateway := lab.Pair(t)
	if _, err := lab.EchoServer(gateway, ":22"); err != nil {
		t.Fatal(err)
	}
	nothing := lab.Value(os.OpenFile(os.DevNull, os.O_WRONLY, 0))(t)
	defer nothing.Close()
	d := &demo{Stage: &stage.Stage{Teller: stage.NewTeller(nothing)}, stranger: &stage.Host{Host: client}}
	if err := d.scan(sight{open: []int{22}}, stage.AnswerWithin); err != nil {
		t.Error(err)
	}
	err := d.scan(sight{silent: []int{22}}, stage.AnswerWithin)
	if err == nil || !strings.Contains(err.Error(), "got open: 22; no answer: none; closed: 1023, want "+
		"open: none; no answer: 22;") {
		t.Errorf("got %v, want the port that is open to be named", err)
	}
	if err := closedUDP(client, stage.KnockPort); err != nil {
		t.Error(err)
	}
}
