package firewall

import (
	"testing"
	"time"
)

// TestConfirmedByOne: with a client that must confirm, the connections of others do not count, nor do those that were
// there before its grant; its own does.
func TestConfirmedByOne(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, func(c *Config) { c.ConfirmBy = "door" })
		s.open()
		v := s.try(10 * time.Minute)
		looks := func() bool {
			s.must(s.look(time.Now()))
			return s.Condition().Trial.IsZero()
		}
		v.gives(sshGrant("alice", "192.0.2.2", time.Hour))
		s.connect("192.0.2.2", "192.0.2.1", "22")
		if looks() {
			t.Error("another client's connection confirmed the guard")
		}
		v.gives(sshGrant("door", "192.0.2.2", time.Hour)) // alice's session is from the same address
		if looks() {
			t.Error("a connection from before confirmed the guard")
		}
		v.gives(sshGrant("alice", "192.0.2.3", time.Hour))
		s.connect("192.0.2.3", "192.0.2.1", "22")
		if looks() || s.Condition().TrialBy != "door" {
			t.Error("another address's connection confirmed the guard")
		}
		s.connect("192.0.2.2", "192.0.2.1", "22").Close()
		if !looks() {
			t.Error("its own did not")
		}
	})
}

// TestConfirmedFromNetwork: a connection from any address of a network that the client lets in confirms the guard, and
// one from elsewhere does not.
func TestConfirmedFromNetwork(t *testing.T) {
	everyBackend(t, func(t *testing.T, k kind) {
		s := k.newSite(t, func(c *Config) { c.ConfirmBy = "door" })
		s.open()
		v := s.try(10 * time.Minute)
		s.must(s.client.AddAddr("vc", "198.51.100.7/24"))
		s.must(s.gw.Route("198.51.100.0/24", "192.0.2.2"))
		v.gives(netGrant("door", "198.51.100.0/24", time.Hour))
		v.gives(sshGrant("alice", "192.0.2.2", time.Hour))
		s.connect("192.0.2.2", "192.0.2.1", "22")
		s.must(s.look(time.Now()))
		if s.Condition().Trial.IsZero() {
			t.Error("another client's connection confirmed the guard")
		}
		s.connect("198.51.100.7", "192.0.2.1", "22").Close()
		s.must(s.look(time.Now()))
		if !s.Condition().Trial.IsZero() {
			t.Error("a connection from the network did not confirm the guard")
		}
	})
}
