package main

import (
	"io"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestScan: the scan sees an open port and tells it from closed ones, and one that is open and was to be
// dark breaks the promise.
func TestScan(t *testing.T) {
	client, gateway := lab.Pair(t)
	if _, err := lab.EchoServer(gateway, ":22"); err != nil {
		t.Fatal(err)
	}
	d := &demo{teller: &teller{w: io.Discard}, stranger: &person{Host: client}}
	if err := d.scan(sight{open: []int{22}}, answerWithin); err != nil {
		t.Error(err)
	}
	err := d.scan(sight{silent: []int{22}}, answerWithin)
	if err == nil || !strings.Contains(err.Error(), "got open: 22; no answer: none; closed: 1023, want open: none; no answer: 22;") {
		t.Errorf("got %v, want the port that is open to be named", err)
	}
	if err := closedUDP(client, knockPort); err != nil {
		t.Error(err)
	}
}
