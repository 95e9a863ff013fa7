package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/spa/lab"
)

// TestUndoOnlyItsOwn: a rotation that could not hand out its token takes back its own key, but no later change by
// another program.
func TestUndoOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	before := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	lab.Must(t, keys.WriteClient(dir, before, true))
	rotated := func() *keys.Client {
		after, err := keys.ChangeClient(dir, "alice", func(c *keys.Client) error {
			c.Rotate(time.Now().Add(time.Hour))
			return nil
		})
		lab.Must(t, err)
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

// TestRotateBesideACopy: while a copy of the client's file lies there, its key is not replaced: the copy would bring
// the old key back once the client's own file no longer has it.
func TestRotateBesideACopy(t *testing.T) {
	dir := t.TempDir()
	alice := &keys.Client{Name: "alice", ID: keys.NewID(), Key: keys.NewKey(), Allow: []string{"ssh"}}
	alice.Previous = &keys.Previous{ID: keys.NewID(), Key: keys.NewKey(), Until: time.Now().Add(time.Hour)}
	old := *alice
	old.Name = "alice-old"
	lab.Must(t, errors.Join(keys.WriteClient(dir, alice, true), keys.WriteClient(dir, &old, true)))
	before := alice.ID
	for _, r := range []rotation{{overlap: enrol.Overlap(time.Hour), force: true}, {lost: true}} {
		err := r.apply(alice, dir, time.Now())
		if err == nil || !strings.Contains(err.Error(), "alice-old.toml") || alice.ID != before {
			t.Errorf("%+v: got %v and id %v, want the path of the copy and the key as it was", r, err, alice.ID)
		}
	}
	lab.Must(t, os.Remove(filepath.Join(dir, "alice-old.toml")))
	for _, r := range []rotation{{overlap: enrol.Overlap(time.Hour), force: true}, {lost: true}} {
		id := alice.ID
		if err := r.apply(alice, dir, time.Now()); err != nil || alice.ID == id {
			t.Errorf("%+v, without the copy: %v", r, err)
		}
	}
}
