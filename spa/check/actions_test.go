package check

import (
	"strings"
	"testing"
	"time"

	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestActions: check reports programs that cannot be started, that run with many rights, and that the server could not
// start.
func TestActions(t *testing.T) {
	lab.NeedRoot(t)
	for want, a := range map[string]config.Action{
		"":                                       {Run: []string{"/bin/sh"}, User: "nobody"},
		"problem there is no program /nowhere":   {Run: []string{"/nowhere"}, User: "nobody"},
		"problem run_after: there is no program": {After: []string{"/nowhere"}, User: "nobody"},
		"problem user: there is no user no-one":  {Run: []string{"/bin/sh"}, User: "no-one"},
		"warning root: whoever may knock":        {Run: []string{"/bin/sh"}, User: "root"},
	} {
		a.Timeout = time.Minute
		var got []string
		for _, f := range checkActions(&config.Config{Dir: t.TempDir(), Services: []config.Service{{Name: "a", Action: a}}}) {
			lab.Pasteable(t, f.Subject, f.Advice)
			got = append(got, string(f.Severity)+" "+f.Text)
		}
		severity, words, _ := strings.Cut(want, " ")
		if all := strings.Join(got, "\n"); want == "" && all != "" || !strings.HasPrefix(all, severity) ||
			!strings.Contains(all, words) || len(got) > 1 {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if found := checkPrograms(&control.Actions{Trouble: "a", Unsaved: "b", Failed: 1}); len(found) != 3 {
		t.Errorf("got %v", found)
	}
	if found := checkPrograms(&control.Actions{}); len(found) != 0 {
		t.Errorf("got %v", found)
	}
}
