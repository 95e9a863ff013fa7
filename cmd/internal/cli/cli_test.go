package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/spa/lab"

	"github.com/spf13/cobra"
)

// program returns a command tree whose command do ends as end says.
func program(end func(cmd *cobra.Command) error) (*cobra.Command, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	root := &cobra.Command{Use: "spa-test"}
	ConfigFlag(root, new(string), "d")
	do := &cobra.Command{Use: "do", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command,
		_ []string) error {
		return end(cmd)
	}}
	do.Flags().Int("n", 0, "a number")
	nested := &cobra.Command{Use: "nested"}
	nested.AddCommand(&cobra.Command{Use: "fail", RunE: func(*cobra.Command,
		[]string) error {
		return errors.New("deep down")
	}})
	root.AddCommand(do, nested)
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	return root, &stdout, &stderr
}

func TestEnds(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		args   string
		end    error
		code   int
		stderr string
	}{
		"done":   {"do", nil, Done, ""},
		"failed": {"do", boom, Failed, "spa-test: error: boom\n"},
		"failed, wrapped": {"do", fmt.Errorf("doing: %w", &Exit{Code: Refused, Err: boom}), Refused,
			"spa-test: error: boom\n"},
		"fail": {"do", Fail(boom, "do this"), Failed,
			"spa-test: error: boom\nspa-test: hint: do this\n"},
		"misuse": {"do", Misuse(boom, "do that"), Misused,
			"spa-test: error: boom\nspa-test: hint: do that\n"},
		"no answer":    {"do", &Exit{Code: NoAnswer, Err: boom}, NoAnswer, "spa-test: error: boom\n"},
		"no code":      {"do", &Exit{Err: boom}, Failed, "spa-test: error: boom\n"},
		"said already": {"do", &Exit{Code: Refused}, Refused, ""},
		"several": {"do", errors.Join(boom, errors.New("bang")), Failed,
			"spa-test: error: boom\nspa-test: error: bang\n"},
		"nested":                         {"nested fail", nil, Failed, "spa-test: error: deep down\n"},
		"cancelled, but not by a signal": {"do", context.Canceled, Failed, "spa-test: error: context canceled\n"},
		"unknown flag": {"do --m 1", nil, Misused, "spa-test: error: unknown flag: --m\nspa-test: hint: " +
			"spa-test do --help shows how it is used\n"},
		"bad flag": {"do --n x", nil, Misused, "spa-test: error: invalid argument \"x\" for \"--n\" flag: " +
			"strconv.ParseInt: parsing \"x\": invalid syntax\nspa-test: hint: spa-test do --help shows how it is used\n"},
		"bad argument": {"do it", nil, Misused, "spa-test: error: unknown command \"it\" for \"spa-test " +
			"do\"\nspa-test: hint: spa-test do --help shows how it is used\n"},
		"unknown command": {"xyz", nil, Misused, "spa-test: error: unknown command \"xyz\" for " +
			"\"spa-test\"\nspa-test: hint: spa-test --help shows how it is used\n"},
		"misspelt command": {"dp", nil, Misused, "spa-test: error: unknown command \"dp\" for \"spa-test\"\nspa-test: " +
			"hint: did you mean do?\n"},
		"no command": {"", nil, Misused, "spa-test: error: no command given\nspa-test: hint: spa-test " +
			"--help lists the commands\n"},
		"flags and no command": {"--config d", nil, Misused, "spa-test: error: no command given\nspa-test: hint: spa-test " +
			"--help lists the commands\n"},
	} {
		t.Run(name, func(t *testing.T) {
			root, stdout, stderr := program(func(*cobra.Command) error { return c.end })
			code := run(t.Context(), "spa-test", root, strings.Fields(c.args))
			if code != c.code || stderr.String() != c.stderr || stdout.Len() != 0 {
				t.Errorf("got %d, %q, and on standard output %q; want %d, %q", code, stderr, stdout, c.code, c.stderr)
			}
		})
	}
}

func TestSignal(t *testing.T) {
	for signal, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(stopped{signal})
		root, _, stderr := program(func(cmd *cobra.Command) error { return fmt.Errorf("doing: %w", cmd.Context().Err()) })
		if code := run(ctx, "spa-test", root, []string{"do"}); code != want || stderr.Len() != 0 {
			t.Errorf("%v: got %d, %q; want %d and nothing", signal, code, stderr, want)
		}
		root, _, stderr = program(func(*cobra.Command) error { return errors.New("boom") })
		if code := run(ctx, "spa-test", root, []string{"do"}); code != Failed || stderr.Len() == 0 {
			t.Errorf("%v: an error of another kind: got %d, %q", signal, code, stderr)
		}
		root, _, _ = program(func(*cobra.Command) error { return nil })
		if code := run(ctx, "spa-test", root, []string{"do"}); code != Done {
			t.Errorf("%v: a command that ends well all the same: got %d", signal, code)
		}
	}
}

func TestVersion(t *testing.T) {
	root, stdout, _ := program(nil)
	if code := run(t.Context(), "spa-test", root, []string{"--version"}); code != Done ||
		!strings.HasPrefix(stdout.String(), "spa-test ") {
		t.Errorf("got %d, %q", code, stdout)
	}
}

func TestTokensAreNoArguments(t *testing.T) {
	const secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQ"
	for _, args := range [][]string{{"spa1" + secret}, {"do", "spa1" + secret}, {"do", "--x=spa1" + secret},
		{"--x", "spa1" + secret}, {"do", " spa1" + secret + "\n"}} {
		root, stdout, stderr := program(func(*cobra.Command) error { return nil })
		code := run(t.Context(), "spa-test", root, args)
		if code != Misused || strings.Contains(stdout.String()+stderr.String(), secret) {
			t.Errorf("%q: got %d, %q", args, code, stderr)
		}
	}
	for arg, want := range map[string]bool{
		"spa1": false, "spa1-gw": false, "spa1.Token": false, "./spa1AAAA": false, "spa": false,
		"--spa1": false, "a=spa1AAAA": false,
		"spa1AAAA": true, "spa1aaa_": true, "spa1" + strings.Repeat("a", 28): false, "spa1" + strings.Repeat("a", 29): true,
	} {
		if got := LooksLikeToken(arg); got != want {
			t.Errorf("%q: got %v, want %v", arg, got, want)
		}
	}
}

func TestOutput(t *testing.T) {
	root, stdout, stderr := program(func(cmd *cobra.Command) error {
		Warn(cmd, "it is %d", 7)
		Note(cmd, "it was %d", 6)
		return JSON(cmd, map[string]string{"a": "<b>é\u009b\x7f\u202e\U000e0041"})
	})
	if code := run(t.Context(), "spa-test", root, []string{"do"}); code != Done {
		t.Errorf("got %d", code)
	}
	if want := "spa-test: warning: it is 7\nspa-test: note: it was 6\n"; stderr.String() != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
	if want := "{\"a\":\"<b>é\\u009b\\u007f\\u202e\\udb40\\udc41\"}\n"; stdout.String() != want {
		t.Errorf("got %q, want %q", stdout, want)
	}
	failing := &cobra.Command{}
	failing.SetOut(failer{})
	if err := JSON(failing, 1); err == nil {
		t.Error("an output that fails: no error")
	}
}

// TestHostileTexts: text chosen by others cannot end a line, move the cursor or reverse the text direction.
func TestHostileTexts(t *testing.T) {
	const hostile = "a\x1b[2J\r\u202eb\u2028\u009b"
	root, _, stderr := program(func(cmd *cobra.Command) error {
		Warn(cmd, "%s\n%s", hostile, hostile)
		Note(cmd, "%s\n%s", hostile, hostile)
		return Fail(fmt.Errorf("%s\n%s", hostile, hostile), hostile+"\n"+hostile)
	})
	run(t.Context(), "spa-test", root, []string{"do"})
	const plain = "a?[2J??b??"
	want := "spa-test: warning: " + plain + "\nspa-test: warning: " + plain + "\nspa-test: note: " + plain + "?" + plain +
		"\nspa-test: error: " + plain + "\nspa-test: error: " + plain + "\nspa-test: hint: " + plain + "?" + plain + "\n"
	if stderr.String() != want {
		t.Errorf("got %q, want %q", stderr, want)
	}
}

type failer struct{}

func (failer) Write([]byte) (int, error) { return 0, os.ErrClosed }

// TestNoColour: output into a file or another program has no colours.
func TestNoColour(t *testing.T) {
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "")
	file := lab.Value(os.CreateTemp(t.TempDir(), ""))(t)
	defer file.Close()
	if got := paint(file, red, "error:"); got != "error:" {
		t.Errorf("into a file: got %q", got)
	}
	if got := paint(new(bytes.Buffer), red, "error:"); got != "error:" {
		t.Errorf("into a buffer: got %q", got)
	}
}

// TestClock: a time includes its date and zone if it would be ambiguous without.
func TestClock(t *testing.T) {
	berlin := lab.Value(time.LoadLocation("Europe/Berlin"))(t)
	defer func(zone *time.Location) { time.Local = zone }(time.Local)
	time.Local = berlin
	now := time.Date(2026, 10, 25, 0, 50, 0, 0, time.UTC) // at 2:50; clocks are set back at 3:00
	for after, want := range map[time.Duration]string{
		5 * time.Minute: "02:55:00", 20 * time.Minute: "02:10:00 CET", 24 * time.Hour: "2026-10-26 01:50:00 CET",
	} {
		if got := Clock(now.Add(after), now); got != want {
			t.Errorf("%v later: got %q, want %q", after, got, want)
		}
	}
}
