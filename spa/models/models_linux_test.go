// Package models_test runs the protocol models of this directory in the model checker Spin.
package models_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// A run is a model with definitions, and the verdict that Spin must give.
type run struct {
	model   string
	defines string
	breaks  string // the property that must be violated. Empty: all hold
}

// property is the number at the beginning of a property's name, as in S1_nonce_acts_once.
var property = regexp.MustCompile(`^S([0-9])_`)

// holds are the algorithms that keep every promise.
var holds = []run{
	{"shared", "", ""},
	{"shared", "JOURNAL", ""},
	{"shared", "MEMBERS=3 CRASHES=0", ""},
	{"shared", "CALM CRASHES=0 RETRY", ""},
	{"shared", "CALM CRASHES=0 MEMBERS=3", ""},
	{"shared", "NONCE_FIRST CRASHES=0", ""},
	{"shared", "NONCE_FIRST CALM CRASHES=0 RETRY", ""},
	{"lease", "", ""},
	{"lease", "OFFSET=0 LEASE=3 IDLEASE=4", ""},
	{"lease", "CONTINUED RETRY=4 IDLEASE=5", ""},
	{"floor", "", ""},
	{"floor", "MEMBERS=3", ""},
	{"floor", "CALM", ""},
	{"floor", "FLOOR_REMEMBERED", ""},
}

// broken are the algorithms that look as good, and are not.
var broken = []run{
	{"shared", "GET_THEN_PUT CRASHES=0", "S1_nonce_acts_once"},
	{"shared", "GET_THEN_PUT CRASHES=0", "S2_id_acts_once"},
	{"shared", "FAIL_OPEN", "S1_nonce_acts_once"},
	{"shared", "FAIL_OPEN", "S2_id_acts_once"},
	{"shared", "LOCAL", "S1_nonce_acts_once"},
	{"shared", "LOCAL JOURNAL", "S1_nonce_acts_once"},
	{"shared", "LOCAL JOURNAL", "S2_id_acts_once"},
	{"shared", "SPEND_AFTER_GRANT", "S1_nonce_acts_once"},
	{"shared", "SPEND_AFTER_GRANT", "S2_id_acts_once"},
	{"shared", "NONCE_ONLY", "S2_id_acts_once"},
	{"shared", "STALE_ANSWER", "S1_nonce_acts_once"},
	{"shared", "ID_FIRST CALM CRASHES=0", "L_granted_once"},
	{"lease", "OFFSET=0 RETRY=0 LEASE=2 IDLEASE=2", "S1_nonce_acts_once"},
	{"lease", "LEASE=3 IDLEASE=3", "S1_nonce_acts_once"},
	{"lease", "LEASE=3", "S4_nonce_answered_once"},
	{"lease", "IDLEASE=4", "S2_id_acts_once"},
	{"lease", "NO_RECHECK", "S1_nonce_acts_once"},
	{"lease", "RETRY=4 IDLEASE=5", "S2_id_acts_once"},
	{"floor", "ANSWER_AT_COMMIT", "S3_closed_stays_closed"},
	{"floor", "NO_RECHECK", "S3_closed_stays_closed"},
	{"floor", "NO_FENCE", "S3_closed_stays_closed"},
	{"floor", "LOAD_FIRST", "S3_closed_stays_closed"},
	{"floor", "FLOOR_EXPIRES", "S3_closed_stays_closed"},
	{"floor", "ANSWER_AT_COMMIT FLOOR_REMEMBERED", "S6_late_packet_refused"},
}

func TestModels(t *testing.T) {
	for _, r := range slices.Concat(holds, broken) {
		t.Run(strings.TrimSpace(r.model+" "+r.defines+" "+r.breaks), func(t *testing.T) {
			t.Parallel()
			check(t, r)
		})
	}
}

// violated matches what Spin's program prints of a violated property.
var violated = regexp.MustCompile(`assertion violated (\w+)`)

// check explores every state of the model, up to the first that violates a property.
func check(t *testing.T, r run) {
	spin := lab.NeedProgram(t, "spin", "apt-get install spin")
	gcc := lab.NeedProgram(t, "gcc", "apt-get install gcc libc6-dev")
	source := lab.Value(filepath.Abs(r.model + ".pml"))(t)
	dir := t.TempDir()

	var defines []string
	for _, d := range strings.Fields(r.defines) {
		defines = append(defines, "-D"+d)
	}
	if n := property.FindStringSubmatch(r.breaks); n != nil {
		defines = append(defines, "-DONLY="+n[1])
	}
	command(t, dir, spin, append(defines, "-a", source)...)
	command(t, dir, gcc, "-w", "-DSAFETY", "-o", "pan", "pan.c")
	out := command(t, dir, "./pan", "-E", "-m20000", "-w19")

	got := ""
	if m := violated.FindStringSubmatch(out); m != nil {
		got = m[1]
	}
	if strings.Contains(out, "max search depth too small") || !strings.Contains(out, "errors: ") ||
		(got == "") != strings.Contains(out, "errors: 0") {
		t.Fatalf("Spin did not finish:\n%s", out)
	}
	if got != r.breaks {
		t.Errorf("violated property: got %q, want %q", got, r.breaks)
	}
}

func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
