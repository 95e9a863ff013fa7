package action

import "slices"

// Limits of programs that wait or run. A client that had to wait longer would believe that its program was started.
const (
	mostBegins  = 64             // grants that wait for their first program
	mostOfOne   = 8              // programs of one client that wait
	mostRunning = MaxRunning / 2 // programs of one client that run: others can always start some
)

// crowded reports whether another grant of a client would have to wait too long, or keep others from being started.
func (b *Book) crowded(client string, begins bool) bool {
	all, own := 0, 0
	for _, e := range b.queue {
		if e.hook == Begin {
			all++
		}
		if e.client == client {
			own++
		}
	}
	return own >= mostOfOne || begins && all >= mostBegins
}

// due queues a program.
func (b *Book) due(e *entry, h Hook) {
	e.stage, e.hook = waiting, h
	b.queue = append(b.queue, e)
}

// skip takes a first program out of the queue.
func (b *Book) skip(e *entry) {
	b.queue = slices.DeleteFunc(b.queue, func(other *entry) bool { return other == e })
	b.skipped = append(b.skipped, *e.job(Begin))
	b.counts[Count{e.service, Begin, Failed}]++
	e.stage = idle
}

// reportSkipped reports the programs that were not started.
func (b *Book) reportSkipped() {
	b.mu.Lock()
	jobs := b.skipped
	b.skipped = nil
	b.mu.Unlock()
	for _, j := range jobs {
		b.Report(j, Event{What: Failed, Text: "the grant was closed or revoked before the program could be started"})
	}
}

// startNext starts the programs that are due, as many as may run.
func (b *Book) startNext() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := 0; i < len(b.queue) && len(b.running) < MaxRunning; {
		e := b.queue[i]
		// An earlier grant's come first.
		if !e.synced || b.lines[e.key][0] != e || b.runningOf(e.client) >= mostRunning {
			i++
			continue
		}
		number, err := b.runner.send(request{Job: e.job(e.hook)}, nil)
		if err != nil {
			return // it stays in the file
		}
		e.stage = busy
		b.running[number] = e
		b.queue = slices.Delete(b.queue, i, i+1)
	}
}

func (b *Book) runningOf(client string) int {
	n := 0
	for _, e := range b.running {
		if e.client == client {
			n++
		}
	}
	return n
}
