package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
)

// controlled serves the control socket of a server that decides, and connects to it.
func controlled(t testing.TB, s *Server) *control.Client {
	t.Helper()
	socket := lab.Value(control.Listen(s.config.State, 0))(t)
	s.socket = socket
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.serveControl(ctx) }()
	t.Cleanup(func() {
		stop()
		<-done
		socket.Close()
	})
	return dialed(t, s)
}

func dialed(t testing.TB, s *Server) *control.Client {
	t.Helper()
	client := lab.Value(control.Dial(s.config.State))(t)
	t.Cleanup(func() { client.Close() })
	return client
}

// TestWatcherWhoDoesNotRead: the line does not wait for a stalled watcher, its queue is bounded, and it learns how many
// decisions it lost, and before which one.
func TestWatcherWhoDoesNotRead(t *testing.T) {
	s, sender := newLine(t)
	client := controlled(t, s)
	const many = 6000
	var shown, missed uint64
	reading := make(chan struct{})
	done := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() {
		done <- client.Ask(ctx, control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
			<-reading
			missed += r.Missed
			switch d := r.Decision; {
			case d == nil && r.Missed == 0:
				t.Error("a reply says nothing")
			case d != nil:
				if shown++; d.Verdict == audit.Closed.String() && d.Client != fmt.Sprint(shown+missed-1) {
					t.Errorf("number %s comes after %d that were shown and %d that were missed", d.Client, shown-1, missed)
				}
			}
			if shown+missed == many {
				stop()
			}
			return nil
		})
	}()
	lab.Eventually(t, "the watcher to join", s.feed.Watched)
	for n := range many / 2 {
		s.feed.Tell(audit.Event{Verdict: audit.Closed, Client: fmt.Sprint(n)})
	}
	for range many / 2 {
		s.process(context.Background(), arriving(sealed(t, sender)))
	}
	close(reading)
	if err := <-done; err != context.Canceled {
		t.Fatal(err)
	}
	if shown+missed != many || missed == 0 || shown < feed.Queued {
		t.Errorf("%d shown and %d missed, want %d together, and some of each", shown, missed, many)
	}
}

// TestMissedIsToldFirst: the number of lost decisions comes before the decision that follows them.
func TestMissedIsToldFirst(t *testing.T) {
	s, _ := newLine(t)
	socket, err := control.Listen(s.config.State, 0)
	lab.Must(t, err)
	defer socket.Close()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() {
		served <- socket.Serve(ctx, func(_ context.Context, _ control.Request, a *control.Answer) error {
			return errors.Join(sendTold(a, feed.Told{Missed: 3}), sendTold(a, feed.Told{}))
		})
	}()
	var got []uint64 // missed; zero: a decision
	err = dialed(t, s).Ask(t.Context(), control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
		if (r.Decision == nil) != (r.Missed > 0) {
			t.Errorf("got %+v", r)
		}
		got = append(got, r.Missed)
		return nil
	})
	if err != nil || !slices.Equal(got, []uint64{3, 0, 0}) {
		t.Errorf("got %v, %v", got, err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestWatcherComesLater: a watcher sees the end of grants from before it connected.
func TestWatcherComesLater(t *testing.T) {
	s, sender := newLine(t)
	client := controlled(t, s)
	s.process(context.Background(), arriving(sealed(t, sender)))
	enough := errors.New("enough")
	go func() {
		for s.feed.TellEnded(time.Now()).IsZero() { // no end is scheduled
			time.Sleep(time.Millisecond)
		}
		s.feed.TellEnded(time.Now().Add(time.Hour))
	}()
	err := client.Ask(t.Context(), control.Request{Command: control.CommandWatch}, func(r control.Reply) error {
		if r.Decision == nil || r.Decision.Verdict != "ended" || r.Decision.Client != "alice" {
			t.Errorf("got %+v", r)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestCommands: each request gets a complete answer, or the reason why nothing was done.
func TestCommands(t *testing.T) {
	b := newSite(t, func(string) {})
	controlled(t, b.s)
	ask := func(r control.Request) (got []control.Reply, err error) {
		err = dialed(t, b.s).Ask(t.Context(), r, func(reply control.Reply) error { got = append(got, reply); return nil })
		return got, err
	}
	b.knock()
	b.rewrite(`ports = ["tcp/22"]`, "ports = [\"tcp/22\"]\n\n[service.web]\nports = [\"tcp/80\"]")
	b.write(func(c *keys.Client) { c.Allow = []string{"ssh", "web"} })
	if got, err := ask(control.Request{Command: control.CommandReload}); err != nil || len(got) != 1 ||
		len(got[0].Reloaded.Changed) != 1 {
		t.Errorf("reload: %+v, %v", got, err)
	}
	b.at = time.Now()
	b.ask("web")
	if got, err := ask(control.Request{Command: control.CommandGrants}); err != nil || len(got) != 2 ||
		got[0].Grant == nil || got[1].Grant == nil {
		t.Errorf("grants: %+v, %v", got, err)
	}
	if got, err := ask(control.Request{Command: control.CommandRevoke, Client: "alice"}); err != nil || len(got) != 1 ||
		len(got[0].Revoked.Ended) != 2 {
		t.Errorf("revoke: %+v, %v", got, err)
	}
	b.rewrite("[service.ssh]", "[service.ssh")
	if got, err := ask(control.Request{Command: control.CommandReload}); err == nil || !strings.Contains(err.Error(),
		config.FileName) || len(got) != 0 {
		t.Errorf("reload with a mistake: %+v, %v", got, err)
	}
}

// TestFloodCostsNothing: without watchers, noise and copies allocate nothing on the line.
func TestFloodCostsNothing(t *testing.T) {
	s, _ := newLine(t)
	noise := arriving(make([]byte, 200))
	s.process(context.Background(), noise)
	if n := testing.AllocsPerRun(100, func() { s.process(context.Background(), noise) }); n != 0 {
		t.Errorf("%v allocations a packet of noise", n)
	}
}

// TestToldInOrder: watchers see a grant before its end.
func TestToldInOrder(t *testing.T) {
	s, sender := newLine(t)
	w, _ := s.feed.Join()
	defer s.feed.Leave(w)
	done := make(chan struct{})
	const many = 200
	go func() {
		defer close(done)
		for range many {
			s.process(context.Background(), arriving(sealed(t, sender)))
		}
	}()
	open := false
	for told := 0; told < many; {
		s.revoke(t.Context(), control.Request{Client: "alice"})
		for len(w.Lines) > 0 {
			switch d := (<-w.Lines).Decision; d.Verdict {
			case "granted":
				told, open = told+1, true
			case "denied":
				told++
			case "revoked":
				if !open {
					t.Fatal("the watcher got the end of a grant before the grant")
				}
				open = false
			}
		}
	}
	<-done
}
