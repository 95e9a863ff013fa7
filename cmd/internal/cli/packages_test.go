package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Which package an error is from is for programmers.
func TestNoPackageIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"keys: a name has letters":                       "a name has letters",
		`"SSH" is no service: spa: keys: a name`:         `"SSH" is no service: a name`,
		"spa: service: keys: a name":                     "service: a name",
		"/etc/spa: is no directory":                      "/etc/spa: is no directory",
		"gw.toml:7: client: a name":                      "gw.toml:7: client: a name",
		"spa: one of joined errors\nkeys: and the other": "one of joined errors\nand the other",
	} {
		var out bytes.Buffer
		root := &cobra.Command{Use: "spa-test"}
		root.SetErr(&out)
		complain(root, "spa-test", &Exit{Err: errors.New(text)})
		if got := strings.ReplaceAll(out.String(), "spa-test: error: ", ""); got != want+"\n" {
			t.Errorf("of %q it says %q, want %q", text, got, want)
		}
		out.Reset()
		Warn(root, "%s", text)
		if strings.Contains(out.String(), "keys:") {
			t.Errorf("of %q it warns %q", text, &out)
		}
	}
}
