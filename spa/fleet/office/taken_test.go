package office_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sallyport/spa/fleet"
	"sallyport/spa/fleet/office"
	"sallyport/spa/lab"
)

// reports has the gateway take over its bundle, and report that.
func (s *several) reports(t *testing.T, d office.Directory) {
	t.Helper()
	b := lab.Value(fleet.Parse(lab.Value(os.ReadFile(d.Where("web")))(t)))(t)
	line := lab.Value(fleet.Open(b, s.gateway))(t).Taken.Sign(b.Head, s.now).String()
	lab.Must(t, os.WriteFile(filepath.Join(string(d), "web.taken"), []byte(line), 0o644))
}

func (s *several) wantTaken(t *testing.T, when, dir string, d office.Directory, want office.Taken) {
	t.Helper()
	o := lab.Value(office.Load(dir))(t)
	got := lab.Value(o.States(context.Background(), d, s.now, 24*time.Hour))(t)[0].Taken
	if got == nil || got.State != want.State || got.Serial != want.Serial || got.Behind != want.Behind {
		t.Errorf("%s: got %+v, want %+v", when, got, want)
	}
}

// TestTakenOfFailed: a gateway that took over a bundle of a publish that then failed proves that. One that has a bundle
// of another administrator's publish is no forger, though this office does not know its key.
func TestTakenOfFailed(t *testing.T) {
	s := newSeveral(t)
	store := office.Directory(t.TempDir())
	lab.Value(s.publish(t, s.dir, store, false))(t)
	s.reports(t, store)
	s.wantTaken(t, "published", s.dir, store, office.Taken{State: office.Proved, Serial: 1})
	if _, err := s.publish(t, s.dir, full{store, 1}, false); !errors.Is(err, errFull) {
		t.Fatalf("a full destination: %v", err)
	}
	s.wantTaken(t, "failed", s.dir, store, office.Taken{State: office.Proved, Serial: 1})
	s.reports(t, store)
	s.wantTaken(t, "failed, and taken over", s.dir, store, office.Taken{State: office.Proved, Serial: 2})

	carol := copied(t, s.dir)
	lab.Value(s.publish(t, carol, office.Directory(copied(t, string(store))), false))(t)
	lab.Value(s.publish(t, s.dir, store, false))(t)
	s.wantTaken(t, "not taken over", s.dir, store, office.Taken{State: office.Proved, Serial: 2, Behind: true})
	s.reports(t, store)
	s.wantTaken(t, "taken over", s.dir, store, office.Taken{State: office.Proved, Serial: 3})
	s.wantTaken(t, "another's publish", carol, store, office.Taken{State: office.Unknown, Serial: 3, Behind: true})
}
