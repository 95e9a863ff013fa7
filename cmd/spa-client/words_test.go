package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestAskWords: a line with a mistake is asked for again, at once, and the words end by themselves.
func TestAskWords(t *testing.T) {
	p := &keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201}, ServerID: keys.NewServerID(),
		Gate: keys.NewGateKey(), Client: "door", ID: keys.NewID(), Key: keys.NewKey(), Receipts: true, Recovery: true}
	lines := p.Words()
	cmd, said := new(cobra.Command), new(strings.Builder)
	cmd.SetErr(said)
	cmd.SetContext(t.Context())
	typed := lines[0] + "\n\nsallyport " + lines[1] + "\n" + lines[0] + "\n" + strings.Join(lines[1:], "\n") + "\nls\n"
	got := lab.Value(askWords(cmd, strings.NewReader(typed)))(t)
	if got.Token() != p.Token() {
		t.Errorf("got %+v", got)
	}
	for _, want := range []string{"line 1: ", "line 2: word 1 is not in the list: type this line again",
		"line 2: a word is wrong, or the words or lines are not in their order: type this line again", "line 10: "} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("%q is missing in %s", want, said)
		}
	}
	if _, err := askWords(cmd, strings.NewReader(strings.Join(lines[:3], "\n")+"\n")); err == nil ||
		!strings.Contains(err.Error(), "lines are missing") {
		t.Errorf("got %v", err)
	}
}
