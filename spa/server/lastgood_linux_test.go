package server

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sallyport/keys"
	"sallyport/spa/config"
)

// TestForgedSettings: whatever was written there before, the settings that are saved are those that are found; and
// settings that say that they belong elsewhere are not used.
func TestForgedSettings(t *testing.T) {
	for _, number := range []uint64{0, 1, 2, lastGoodMost, lastGoodMost + 1, math.MaxUint64 - 1, math.MaxUint64} {
		for place := range int64(2) {
			c := loadedAgain(t)
			forged := writing{number: number, at: now, dir: c.Dir, text: []byte(strings.ReplaceAll(string(c.Text()), "tcp/22", "tcp/2"))}
			file, err := os.OpenFile(filepath.Join(c.State, lastGoodFile), os.O_RDWR|os.O_CREATE, 0o600)
			if err == nil {
				_, err = file.WriteAt(forged.encode(), place*lastGoodSize)
			}
			if err := errors.Join(err, file.Close(), SaveSettings(c, now)); err != nil {
				t.Fatal(err)
			}
			if number == lastGoodMost {
				continue // the server saves far less often
			}
			got, _, err := LastGood(c.Dir)
			if err != nil || string(got.Text()) != string(c.Text()) {
				t.Errorf("number %d at place %d: %v, found\n%s", number, place, err, textOf(got))
			}
		}
	}
	c := loadedAgain(t)
	text := regexp.MustCompile(`(?m)^state = .*$`).ReplaceAllString(string(c.Text()), fmt.Sprintf("state = %q", t.TempDir()))
	elsewhere := writing{number: 1, at: now, dir: c.Dir, text: []byte(text)}
	if err := os.WriteFile(filepath.Join(c.State, lastGoodFile), elsewhere.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, _, err := LastGood(c.Dir); err == nil {
		t.Errorf("settings of another state directory are used:\n%s", textOf(got))
	}
}

func loadedAgain(t *testing.T) *config.Config {
	t.Helper()
	c, err := config.Load(initialised(t, nil, keys.Client{RequireSource: true}).Dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func textOf(c *config.Config) string {
	if c == nil {
		return ""
	}
	return string(c.Text())
}
