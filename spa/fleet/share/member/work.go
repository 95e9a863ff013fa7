package member

import "sync"

const maxEvents = 1024 // of the store, that wait for the server

// tasks are what the server is called for, one after the other.
type tasks struct {
	changed sync.Cond // of Member.mu
	list    []func()
	events  int // among them, those from the store
}

// work calls the server, until the member stops.
func (m *Member) work() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for m.running {
		if len(m.todo.list) == 0 {
			m.todo.changed.Wait()
			continue
		}
		task := m.todo.list[0]
		m.todo.list[0] = nil
		m.todo.list = m.todo.list[1:]
		m.mu.Unlock()
		task()
		m.mu.Lock()
	}
}

// do adds a task. Packets, ends and events are bounded, so the list is too.
func (m *Member) do(task func()) {
	m.todo.list = append(m.todo.list, task)
	m.todo.changed.Broadcast()
}

// event adds a task that came through a link, and waits while there are too many. Once the link is closed the task is
// skipped: the next link brings the same again.
func (m *Member) event(l *link, task func()) {
	for m.todo.events >= maxEvents && m.link == l {
		m.todo.changed.Wait()
	}
	if m.link != l {
		return
	}
	m.todo.events++
	m.do(func() {
		m.mu.Lock()
		m.todo.events--
		m.todo.changed.Broadcast()
		current := m.link == l
		m.mu.Unlock()
		if current {
			task()
		}
	})
}
