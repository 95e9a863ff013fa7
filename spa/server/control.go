package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sallyport/firewall"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
	"sallyport/spa/server/setup"
)

// openControl creates the socket while that is possible, for the user that the server will become.
func (s *Server) openControl() error {
	uid, _, err := sandbox.Becomes(setup.SystemUser)
	if err != nil {
		return err
	}
	socket, err := control.Listen(s.config.State, uid)
	if err != nil {
		return err
	}
	s.socket = socket
	s.keep(socket)
	return nil
}

// serveControl answers requests until ctx ends. It runs beside the line, and delays it only for as long as a change
// takes.
func (s *Server) serveControl(ctx context.Context) error {
	return s.socket.Serve(ctx, func(ctx context.Context, r control.Request, a *control.Answer) error {
		switch r.Command {
		case control.CommandStatus:
			return a.Send(control.Reply{Status: s.status()})
		case control.CommandGrants:
			return s.sendGrants(a)
		case control.CommandWatch:
			return s.watch(ctx, a)
		case control.CommandRevoke:
			revoked, err := s.revoke(ctx, r)
			return reply(a, control.Reply{Revoked: revoked}, err)
		case control.CommandReload:
			reloaded, err := s.reload(ctx)
			if reloaded == nil {
				return err
			}
			s.recordReload(r, reloaded)
			return errors.Join(a.Send(control.Reply{Reloaded: reloaded}), err)
		case control.CommandRecord:
			return s.record(r)
		}
		return errors.New("unknown command: is spa-server older than this client?")
	})
}

func reply(a *control.Answer, r control.Reply, err error) error {
	if err != nil {
		return err
	}
	return a.Send(r)
}

func (s *Server) sendGrants(a *control.Answer) error {
	const atOnce = 256
	replies := make([]control.Reply, 0, atOnce)
	for part := range slices.Chunk(shown(s.firewall.Grants(s.now())), atOnce) {
		replies = replies[:0]
		for i := range part {
			replies = append(replies, control.Reply{Grant: &part[i]})
		}
		if err := a.Send(replies...); err != nil {
			return err
		}
	}
	return nil
}

// shown returns grants as they are displayed: a grant that the firewall keeps in parts is one. If a service has got
// other ports since, earlier and later parts may end at different times and are two.
func shown(gs []firewall.Grant) []control.Grant {
	list := make([]control.Grant, 0, len(gs))
	for i, g := range gs {
		ports := make([]string, len(g.Ports))
		for j, p := range g.Ports {
			ports[j] = p.String()
		}
		if i > 0 && g.Continues(gs[i-1]) {
			last := &list[len(list)-1]
			last.Ports, last.Taken = append(last.Ports, ports...), last.Taken || g.Taken
			continue
		}
		shown := control.Grant{Client: g.Client, Service: g.Service, Source: g.Source, Ports: ports, Until: g.Until,
			Once: g.Once, Taken: g.Taken}
		if g.Bits > 0 {
			shown.Network = g.Network()
		}
		list = append(list, shown)
	}
	return list
}

// watch sends decisions as they are made. A reader that stalls loses some.
func (s *Server) watch(ctx context.Context, a *control.Answer) error {
	a.Patient()
	w, ok := s.feed.Join()
	if !ok {
		return denied("end one of them: pgrep -af 'spa-server watch'",
			fmt.Sprintf("too many watchers (%d)", feed.MaxWatchers))
	}
	defer s.feed.Leave(w)
	s.feed.Expect(s.firewall.Grants(s.now()))
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-w.Lines:
			if err := sendTold(a, t); err != nil {
				return err
			}
		}
		if missed := s.feed.Missed(w); missed > 0 {
			if err := a.Send(control.Reply{Missed: missed}); err != nil {
				return err
			}
		}
	}
}

func sendTold(a *control.Answer, t feed.Told) error {
	if t.Missed > 0 {
		if err := a.Send(control.Reply{Missed: t.Missed}); err != nil {
			return err
		}
	}
	return a.Send(control.Reply{Decision: &t.Decision})
}

// denied returns an error for the administrator, with a hint.
func denied(hint string, problems ...string) error {
	return &control.Denied{Text: strings.Join(slices.DeleteFunc(problems, func(p string) bool { return p == "" }), "\n"),
		Hint: hint}
}
