package server

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestOnlyActsAreRecorded: a program can put acts into the log, and nothing that looks like a decision.
func TestOnlyActsAreRecorded(t *testing.T) {
	b := newBench(t)
	good := control.Act{Act: "new", Program: "spa-keygen", Client: "bob", Key: "0102030405060708",
		Services: []string{"ssh", "tcp/8000-8050"}}
	for name, spoil := range map[string]func(a *control.Act){
		"act":     func(a *control.Act) { a.Act = "granted" },
		"reload":  func(a *control.Act) { a.Act = "reload" }, // the server does that itself
		"program": func(a *control.Act) { a.Program = "other" },
		"client":  func(a *control.Act) { a.Client = "bob\n" },
		"key":     func(a *control.Act) { a.Key = "secret" },
		"setting": func(a *control.Act) { a.Settings = []string{"window", "\"}\n{\"verdict\":\"granted\""} },
		"long":    func(a *control.Act) { a.Settings = []string{strings.Repeat("a", 129)} },
		"service": func(a *control.Act) { a.Services = []string{"ssh", "\"}\n{\"verdict\":\"granted\""} },
	} {
		bad := good
		spoil(&bad)
		if err := b.s.record(control.Request{Act: &bad}); err == nil {
			t.Errorf("%s: recorded", name)
		}
	}
	if err := b.s.record(control.Request{}); err == nil {
		t.Error("no act: recorded")
	}
	lab.Must(t, b.s.record(control.Request{Act: &good, UID: 7, By: &control.By{SudoUser: "carol"}}))
	data := lab.Value(os.ReadFile(filepath.Join(b.s.config.Dir, "audit")))(t)
	var line map[string]any
	if err := json.Unmarshal(data, &line); err != nil || strings.Count(string(data), "\n") != 1 {
		t.Fatalf("%v: %q", err, data)
	}
	if line["act"] != "new" || line["uid"] != 7.0 || line["sudo_user"] != "carol" || line["key"] != good.Key {
		t.Errorf("got %v", line)
	}
}

// TestLostActIsReported: a program whose act was not recorded gets an error, so that it can write the line or warn.
func TestLostActIsReported(t *testing.T) {
	b := newBench(t)
	lab.Must(t, b.s.audit.Close()) // its file takes nothing
	act := &control.Act{Act: "new", Program: "spa-keygen", Client: "bob"}
	if err := b.s.record(control.Request{Act: act}); err == nil {
		t.Error("a lost line is reported as written")
	}
}
