package main

import (
	"os"
	"regexp"
	"testing"
)

// TestPromisesNameTheirTests: each test that SECURITY.md names is there.
func TestPromisesNameTheirTests(t *testing.T) {
	page, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	there := declaredTests(t)
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 20 {
		t.Errorf("SECURITY.md names %d tests: were they found?", len(named))
	}
	for _, match := range named {
		if !there[string(match[1])] {
			t.Errorf("SECURITY.md names %s, which is not there", match[1])
		}
	}
}
