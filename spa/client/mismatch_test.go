package client

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
)

func TestMatches(t *testing.T) {
	two := []service.Service{{Name: "ssh"}, {Name: "vpn"}}
	for name, c := range map[string]struct {
		asked  spa.Type
		status spa.Status
		told   int
		want   bool
	}{
		"granted":                      {spa.TypeOpen, spa.Granted, 2, true},
		"granted, one of two":          {spa.TypeOpen, spa.Granted, 1, false},
		"granted, three for two":       {spa.TypeOpen, spa.Granted, 3, false},
		"closed":                       {spa.TypeClose, spa.Closed, 2, true},
		"closed, none told":            {spa.TypeClose, spa.Closed, 0, true},
		"closed, one of two":           {spa.TypeClose, spa.Closed, 1, false},
		"an open answered as a close":  {spa.TypeOpen, spa.Closed, 2, false},
		"a close answered as a grant":  {spa.TypeClose, spa.Granted, 2, false},
		"an open refused":              {spa.TypeOpen, spa.ReasonFailed, 0, true},
		"a close refused":              {spa.TypeClose, spa.ReasonFailed, 0, true},
		"refused for an unknown cause": {spa.TypeOpen, 255, 0, true},
	} {
		r := spa.Receipt{Status: c.status, Services: make([]spa.Granting, c.told)}
		if got := (Command{Type: c.asked, Services: two}).matches(r); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// A receipt that does not match is still the gateway's: it ends the command, and nothing of it is returned that could
// be read as an answer to the request.
func TestMismatchEndsTheCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, n := both(t)
		onlyFamily(g, true, spa.Closed)
		start := time.Now()
		var answers []Answer
		for a := range mustPrepare(t, g, n, open()).Knock(t.Context()) {
			answers = append(answers, a)
		}
		if len(answers) != 2 || time.Since(start) != grace {
			t.Fatalf("got %d answers after %v, want 2 after %v", len(answers), time.Since(start), grace)
		}
		a := answers[0]
		if a.Verdict != Silent || !errors.Is(a.Err, ErrMismatch) || a.Receipt != nil || !a.Until(0).IsZero() || a.Tries != 1 {
			t.Errorf("got %+v, want a fault of the gateway", a)
		}
		if !errors.Is(answers[1].Err, ErrNoAnswer) {
			t.Errorf("the other family: got %v, want no answer", answers[1].Err)
		}
	})
}
