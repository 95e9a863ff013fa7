package main

import (
	"path/filepath"
	"testing"
	"time"

	"sallyport/keys"
)

// TestUndoOnlyItsOwn: a rotation that could not hand out its token takes back its own key, but no later change by
// another program.
func TestUndoOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	before := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	if err := keys.WriteClient(dir, before, true); err != nil {
		t.Fatal(err)
	}
	rotated := func() *keys.Client {
		after, err := keys.ChangeClient(dir, "alice", func(c *keys.Client) error {
			c.Rotate(time.Now().Add(time.Hour))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return after
	}
	first, second := rotated(), rotated()
	if err := undo(dir, before, first); err == nil {
		t.Error("the other's rotation was undone")
	}
	if err := undo(dir, first, second); err != nil {
		t.Error(err)
	}
	now, err := keys.ReadClient(filepath.Join(dir, "alice.toml"))
	if err != nil || now.ID != first.ID || !now.Key.Equal(first.Key) || now.Previous.ID != before.ID {
		t.Errorf("got %+v, %v, want the keys of the first rotation", now, err)
	}
}
