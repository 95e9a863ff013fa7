package main

import (
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/keys"
	"sallyport/spa/lab"
	"sallyport/spa/recovery"
)

var numbered = regexp.MustCompile(`(?m)^ ?[0-9]+  [a-z].*$`)

// checkWords reads the words of a page and compares what they say: words FILE CLIENT HOST USES
func checkWords(ts *testscript.TestScript, neg bool, args []string) {
	p, err := keys.ParseWords(strings.Join(numbered.FindAllString(ts.ReadFile(args[0]), -1), "\n"))
	ts.Check(err)
	if !p.Recovery || p.Client != args[1] || p.Name != args[2] {
		ts.Fatalf("the words say %s, %s, %v", p.Client, p.Name, p.Recovery)
	}
	registry, _ := keys.LoadRegistry(ts.MkAbs("etc/clients"))
	credential, ok := registry.Lookup(p.ID)
	counts, err := recovery.Read(ts.MkAbs("etc/recovery"))
	ts.Check(err)
	counted := false
	for _, c := range counts {
		counted = counted || c.ID == p.ID && c.Left(0) > 0
	}
	if good := ok && credential.Good(time.Now()) && credential.Key.Equal(p.Key) && counted; good == neg {
		ts.Fatalf("the words' key is good: %v", good)
	}
}

// TestPageFitsPaper: the page of a usual gateway is one page of a printer, whose words are one width.
func TestPageFitsPaper(t *testing.T) {
	p := &keys.Profile{Name: "gateway-recovery", Address: "gateway.of.a.company.example.net", KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(), Client: "recovery", ID: keys.NewID(), Key: keys.NewKey(),
		Services: map[string][]string{"ssh": {"tcp/22"}, "web": {"tcp/443"}}, Receipts: true, Recovery: true}
	text := lab.Value(page(&keys.Client{Name: "recovery", Allow: []string{"ssh", "web"}, Recovery: 3}, p))(t)
	const lines, columns = 66, 90
	if n := strings.Count(text, "\n"); n > lines {
		t.Errorf("%d lines", n)
	}
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(line); n > columns {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if strings.Contains(text, p.Token()) || strings.Contains(text, p.Key.Reveal()) {
		t.Error("the token is on it as text")
	}
	if _, err := page(&keys.Client{Name: "recovery"}, p); err != nil {
		t.Errorf("a client that may open nothing: %v", err)
	}
}
