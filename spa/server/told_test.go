package server

import (
	"fmt"
	"slices"

	"sallyport/spa/server/feed"
)

// toldTo returns the decisions that a watcher received since the last call, abbreviated.
func toldTo(w *feed.Watcher) []string {
	var list []string
	for len(w.Lines) > 0 {
		d := (<-w.Lines).Decision
		list = append(list, fmt.Sprintf("%s %s %d", d.Verdict, d.Client, d.Packets))
	}
	slices.Sort(list)
	return list
}
