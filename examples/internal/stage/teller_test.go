package stage

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"sallyport/spa/lab"
)

func TestJudge(t *testing.T) {
	late := os.ErrDeadlineExceeded
	refused := os.NewSyscallError("connect", syscall.ECONNREFUSED)
	for _, test := range []struct {
		name string
		want Promise
		err  error
		good bool
	}{
		{"open and connected", Open, nil, true},
		{"dark and no answer", Dark, late, true},
		{"dark but connected", Dark, nil, false},
		{"open but no answer", Open, late, false},
		{"dark but refused", Dark, refused, false},
		{"open but refused", Open, refused, false},
	} {
		how, broken := judge(test.want, test.err)
		if how == "" || (broken == nil) != test.good {
			t.Errorf("%s: got %q, %v, want good %v", test.name, how, broken, test.good)
		}
	}
}

func TestFollowStopsAtWhatWasNotPromised(t *testing.T) {
	var out strings.Builder
	var done []string
	tell := &Teller{w: &out}
	do := func(name string, err error) Step {
		return Step{name, func(context.Context) error {
			done = append(done, name)
			return err
		}}
	}
	broken := errors.New("it is open")
	err := tell.Follow(t.Context(), []Step{do("one", nil), do("two", broken), do("three", nil)})
	if !errors.Is(err, broken) || err.Error() != "step 2 (two): it is open" {
		t.Errorf("got %v, want step 2 to be named", err)
	}
	if got := strings.Join(done, " "); got != "one two" {
		t.Errorf("did %s, want one two", got)
	}
	if err := tell.Follow(t.Context(), []Step{do("one", nil)}); err != nil {
		t.Errorf("got %v, want nil", err)
	}
}

func TestFollowStopsWhenInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var out strings.Builder
	err := (&Teller{w: &out}).Follow(ctx, []Step{
		{"one", func(context.Context) error { cancel(); return nil }},
		{"two", func(context.Context) error { t.Error("it continues"); return nil }},
	})
	if err == nil || err.Error() != "step 1 (one): interrupted" {
		t.Errorf("got %v, want interrupted", err)
	}
}

func TestVerdict(t *testing.T) {
	var out strings.Builder
	tell := &Teller{w: &out}
	broken := errors.New("broken")
	if err := tell.Verdict("that", "is broken", broken); err != broken {
		t.Errorf("got %v, want the error passed on", err)
	}
	if err := tell.Verdict("this", "holds", nil); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if got := out.String(); !strings.HasPrefix(got, "   BAD  that") || !strings.Contains(got, "\n   ok   this") {
		t.Errorf("got %q", got)
	}
}

func TestColour(t *testing.T) {
	var out strings.Builder
	tell := &Teller{w: &out, colour: true}
	tell.Heading("one")
	if got, want := out.String(), "\n\x1b[1mone\x1b[0m\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	file := lab.Value(os.Create(t.TempDir() + "/file"))(t)
	defer file.Close()
	if NewTeller(file).colour {
		t.Error("colour in a file")
	}
}
