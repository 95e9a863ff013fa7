package server

import (
	"errors"
	"testing"

	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
)

// TestManyWatchers: watchers leave room on the socket for other commands.
func TestManyWatchers(t *testing.T) {
	s, _ := newLine(t)
	var watching []*feed.Watcher
	for range feed.MaxWatchers {
		w, ok := s.feed.Join()
		if !ok {
			t.Fatalf("there was no room after %d", len(watching))
		}
		watching = append(watching, w)
	}
	var denied *control.Denied
	if err := s.watch(t.Context(), &control.Answer{}); !errors.As(err, &denied) {
		t.Errorf("one too many: got %v, want it denied", err)
	}
	s.feed.Leave(watching[0])
	if _, ok := s.feed.Join(); !ok {
		t.Error("there is no room again after one has left")
	}
}
