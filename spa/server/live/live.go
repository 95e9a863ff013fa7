// Package live is the picture that "spa-server watch" draws on a terminal: who is in, from where and for how long, what
// was decided, how much noise arrives, and whose clock is off.
//
// It queries the running server for its status and its grants once a second, and listens to its decisions. If the
// server stops or hangs, the picture says so, and the queries continue. Every text of the server is made printable
// before it reaches the terminal.
package live

import (
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"sallyport/spa/server/control"
)

const (
	every = time.Second // between two queries, if the server answers quickly
	kept  = 1000        // decisions that can be scrolled to
)

// Server is how to reach the server. Each function makes a connection of its own.
type Server struct {
	Ask  func(context.Context, control.Request, func(control.Reply) error) error
	Line func(control.Decision) string // a decision as one line
}

// Run draws the picture until the user quits or ctx ends.
func Run(ctx context.Context, in io.Reader, out io.Writer, s Server, colours bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := tea.NewProgram(newPicture(s.Line, colours), tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out),
		tea.WithoutSignalHandler(), tea.WithFPS(20))
	go s.poll(ctx, p)
	go s.listen(ctx, p)
	_, err := p.Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// asked is the server's answer to a query, or why there is none.
type asked struct {
	at     time.Time // by this process's clock
	status *control.Status
	grants []control.Grant
	err    error
}

// told is a decision, or a number of decisions that were lost before the next one.
type told struct {
	decision *control.Decision
	missed   uint64
}

// poll asks for status and grants. A server that takes long to answer, such as for a hundred thousand grants, is
// queried less often.
func (s Server) poll(ctx context.Context, p *tea.Program) {
	for ctx.Err() == nil {
		began := time.Now()
		a := s.ask(ctx)
		p.Send(a)
		pause(ctx, max(every, 10*time.Since(began)))
	}
}

func (s Server) ask(ctx context.Context) asked {
	var a asked
	a.err = s.Ask(ctx, control.Request{Command: control.CommandStatus}, func(r control.Reply) error {
		if r.Status != nil {
			a.status = r.Status
		}
		return nil
	})
	a.at = time.Now()
	if a.err != nil || a.status == nil {
		return a
	}
	a.err = s.Ask(ctx, control.Request{Command: control.CommandGrants}, func(r control.Reply) error {
		if r.Grant != nil {
			a.grants = append(a.grants, *r.Grant)
		}
		return nil
	})
	return a
}

// listen passes decisions on. If the server hangs up it connects again.
func (s Server) listen(ctx context.Context, p *tea.Program) {
	for ctx.Err() == nil {
		// Its errors are those that poll reports.
		_ = s.Ask(ctx, control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
			if r.Decision != nil || r.Missed > 0 {
				p.Send(told{r.Decision, r.Missed})
			}
			return nil
		})
		pause(ctx, every)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tick advances the picture's clock.
type tick time.Time

func nextTick() tea.Cmd {
	return tea.Tick(every, func(t time.Time) tea.Msg { return tick(t) })
}

// Init starts the clock.
func (p *picture) Init() tea.Cmd { return nextTick() }

// Update takes over what has happened.
func (p *picture) Update(m tea.Msg) (tea.Model, tea.Cmd) {
	switch m := m.(type) {
	case tick:
		p.now = time.Time(m)
		return p, nextTick()
	case asked:
		p.answered(m)
	case told:
		p.decided(m)
	case tea.WindowSizeMsg:
		p.width, p.height = m.Width, m.Height
	case tea.KeyPressMsg:
		return p, p.key(m.String())
	}
	return p, nil
}

// View draws the picture on the whole screen.
func (p *picture) View() tea.View {
	v := tea.NewView(p.draw())
	v.AltScreen = true
	return v
}

// key acts on a key. Lists are cut to their length when they are drawn.
func (p *picture) key(name string) tea.Cmd {
	list := &p.lists[p.focus]
	switch name {
	case "q", "ctrl+c", "esc":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	case "tab", "right":
		p.focus = (p.focus + 1) % len(p.lists)
	case "shift+tab", "left":
		p.focus = (p.focus + len(p.lists) - 1) % len(p.lists)
	case "down", "j":
		list.top++
	case "up", "k":
		list.top--
	case "pgdown", "space":
		list.top += max(1, list.rows)
	case "pgup":
		list.top -= max(1, list.rows)
	case "home", "g":
		list.top = 0
	case "end", "G":
		list.top = 1 << 30
	}
	list.top = max(0, list.top)
	return nil
}
