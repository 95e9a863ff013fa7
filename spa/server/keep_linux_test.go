package server

import (
	"errors"
	"strings"
	"testing"
	"time"

	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/setup"
)

// TestKeepSettings: only settings that the running server has loaded are kept for the next boot.
func TestKeepSettings(t *testing.T) {
	lab.NeedRoot(t)
	for name, test := range map[string]struct {
		spoil func(b *bench)
		want  string // in the error
		kept  bool
	}{
		"as it was reloaded": {func(b *bench) {}, "", true},
		"changed again since": {func(b *bench) { b.rewrite("[service.ssh]", "# again\n[service.ssh]") }, "has changed again",
			false},
		"a mistake": {func(b *bench) { b.rewrite("[service.ssh]", "[service.ssh") }, config.FileName, false},
		"no server": {func(b *bench) { b.s.socket.Close() }, "not running", false},
		"on trial": {func(b *bench) {
			lab.Must(b, b.s.firewall.Load(b.Context(), time.Hour, time.Now()))
		}, "", false},
	} {
		b := newSite(t, func(string) {})
		var err error
		b.s.sniffer = lab.Value(capture.Listen(captureConfig(b.s.config)))(t)
		t.Cleanup(func() { b.s.sniffer.Close() })
		controlled(t, b.s)
		test.spoil(b)
		err = setup.KeepSettings(t.Context(), b.s.dir, now)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		if _, _, err := setup.LastGood(b.s.dir); errors.Is(err, setup.ErrNeverGood) == test.kept {
			t.Errorf("%s: found: %v, want it kept: %v", name, err, test.kept)
		}
	}
}
