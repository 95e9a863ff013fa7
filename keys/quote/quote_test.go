package quote

import (
	"os/exec"
	"strings"
	"testing"
	"unicode"

	"sallyport/spa/lab"
)

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"gw.example.net":                    "gw.example.net",
		"größer 日本 🙂":                       "größer 日本 🙂",
		"a\x1b[2J\u009b1mé\r\n\tb\x7f":      "a?[2J?1mé???b?",
		"x\u202ey\u2066z\u2069\u200e\ufeff": "x?y?z???",
		"a\u2028b\u2029c\u0085d\v":          "a?b?c?d?",
		"a\u200bb\U000e0041c\ue000":         "a?b?c?",
		"bad \xff\xfe bytes":                "bad ? bytes",
		"no\u00a0break":                     "no?break",
	} {
		if got := Printable(s); got != want {
			t.Errorf("%q: got %q, want %q", s, got, want)
		}
	}
	if got := Lines("a\nb\rc\u202e\n"); got != "a\nb?c?\n" {
		t.Errorf("got %q", got)
	}
}

// TestShellWordIsPrintable: a shell reads the word as the original, and a terminal shows only what is there.
func TestShellWordIsPrintable(t *testing.T) {
	for _, s := range []string{"/etc/spa", "it's", "-n", "", "a b", "$(x)", "ü", "\u202e", "a\nb",
		"\x1b]0;x\a", "\\", "\xff'\n"} {
		word := Shell(s)
		if strings.ContainsFunc(word, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: %q would be seen as something else", s, word)
		}
		bash := lab.NeedProgram(t, "bash", "apt-get install bash")
		out, err := exec.Command(bash, "-c", "printf %s "+word).Output()
		if err != nil || string(out) != s && s != "-n" {
			t.Errorf("%q: %s is %q to a shell, %v", s, word, out, err)
		}
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{"/etc/spa/a.toml": "/etc/spa/a.toml", "a b": "'a b'", "it's": `'it'\''s'`,
		"-rf": "'-rf'", "": "''", "$(x)": "'$(x)'", "ä": "'ä'"} {
		if got := Shell(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}
