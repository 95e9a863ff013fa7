package firewall

import (
	"testing"
	"time"

	"sallyport/keys/service"
)

// TestRevokeOfWhatWasAskedForBefore: a revocation of what was asked for up to a time ends no grant that was asked for
// later, or was asked for again later, also after a restart and under other settings.
func TestRevokeOfWhatWasAskedForBefore(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		f := bothFamilies[0]
		s := k.guarded(t, nil)
		start := time.Now().Add(-time.Minute)
		asks := func(client, source string, at time.Time) {
			t.Helper()
			g := sshGrant(client, source, long)
			g.Asked = at
			s.must(s.Grant(t.Context(), []Grant{g}, time.Now()))
		}
		ends := func(m Match, want int) {
			t.Helper()
			if gs := s.revoke(m); len(gs) != want {
				t.Errorf("%+v ended %+v, want %d", m, gs, want)
			}
		}
		asks("alice", f.alice, start)
		asks("alice", f.alice, start.Add(2*time.Second)) // and its first packet comes once more
		asks("alice", f.alice, start.Add(time.Second))
		before := Match{Client: "alice", Asked: start.Add(2*time.Second - 1)}
		ends(before, 0)
		s.connect(f.alice, f.gateway, "22")
		s.open()
		s.load(0)
		ends(before, 0)
		s.config.Guarded = []service.Ports{ports("tcp/22-23")}
		s.must(s.gw.Do(func() error { return s.Reconfigure(t.Context(), s.config, time.Now()) }))
		ends(before, 0)
		s.connect(f.alice, f.gateway, "22")
		ends(Match{Asked: start.Add(2 * time.Second)}, 1)
		s.dark(f.alice, f.gateway, "22")

		s.grant("bob", f.alice, long) // it is not known when
		ends(Match{Client: "bob", Asked: time.Unix(1, 0)}, 1)
		s.dark(f.alice, f.gateway, "22")
		asks("carol", f.alice, start)
		ends(Match{Client: "carol"}, 1)
	})
}
