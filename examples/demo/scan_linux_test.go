package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

// TestResend: an ICMP error for one packet does not keep later ones from being sent.
func TestResend(t *testing.T) {
	client, _ := lab.Pair(t)
	copied := lab.Value(sniff(client))(t)
	defer copied.close()
	const packets = 20
	if err := resend(client, slices.Repeat([][]byte{make([]byte, 168)}, packets)); err != nil {
		t.Error(err)
	}
	sent := 0
	lab.Eventually(t, "all packets to be sent", func() bool {
		more, err := copied.knocks()
		sent += len(more)
		return err == nil && sent == packets
	})
}

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
	if err := closedUDP(client, knockPort); err != nil {
		t.Error(err)
	}
}
