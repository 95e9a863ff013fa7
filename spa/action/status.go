package action

import "maps"

// Count is what is counted.
type Count struct {
	Service string
	Hook    Hook
	What    string
}

// Status is what a book has to do.
type Status struct {
	PID                     int
	Trouble                 error // why nothing can be started
	Unsaved                 error // why what was started could not be recorded
	Running, Waiting, Stuck int
	Live                    int // grants whose end has a program
	Unfit                   map[string]string
	Counts                  map[Count]uint64
}

// Status returns what the book has to do.
func (b *Book) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Status{PID: b.runner.PID, Trouble: b.runner.Trouble(""), Unsaved: b.unsaved, Running: len(b.running),
		Waiting: len(b.queue), Stuck: b.stuck, Live: len(b.lines), Unfit: b.runner.Unfit(),
		Counts: maps.Clone(b.counts)}
}
