package server

import (
	"fmt"
	"slices"

	"sallyport/spa/server/feed"
)

// toldTo are the decisions that a watcher has been told of since it was last asked, in short.
func toldTo(w *feed.Watcher) []string {
	var list []string
	for len(w.Lines) > 0 {
		d := (<-w.Lines).Decision
		list = append(list, fmt.Sprintf("%s %s %d", d.Verdict, d.Client, d.Packets))
	}
	slices.Sort(list)
	return list
}
