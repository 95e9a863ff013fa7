package server

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"sallyport/firewall"
	"sallyport/spa/action"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// openActions starts what runs the programs of services, if there are any. A dry run runs none.
func (s *Server) openActions() error {
	if !runsPrograms(s.config) {
		return nil
	}
	var file *os.File
	path := s.inState(config.ActionsFile)
	err := setup.Either(path, func() (err error) { file, err = action.OpenFile(path); return err })()
	if err != nil {
		return err
	}
	book, err := action.Open(s.config, action.Options{File: file, Held: s.heldBy, Report: s.programs, Now: s.now})
	if err != nil {
		return err
	}
	s.keep(book)
	s.actions = book
	for service, why := range book.Status().Unfit {
		s.log.Error("service refused until this is fixed and reloaded: its program cannot be started", "service", service,
			"error", why)
	}
	return book.Recover()
}

func runsPrograms(c *config.Config) bool {
	return c.Firewall.Backend != firewall.BackendDryRun && c.RunsPrograms()
}

// heldBy returns the client's live grants, as actions know them.
func (s *Server) heldBy(client string) []action.Grant {
	return begins(s.firewall.GrantsOf(client, s.now()))
}

// begins returns grants as actions know them.
func begins(gs []firewall.Grant) []action.Grant {
	list := make([]action.Grant, len(gs))
	for i, g := range gs {
		list[i] = action.Grant{Client: g.Client, Service: g.Service, Source: g.Source, Until: g.Until}
	}
	return list
}

// programs logs and records what becomes of a program.
func (s *Server) programs(j action.Job, e action.Event) {
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("service", j.Service), slog.String("grant", fmt.Sprintf("%016x", j.Grant))}
	if e.What == action.Ended || e.What == action.Killed {
		attrs = append(attrs, slog.Int("exit", e.Exit))
	}
	if e.Text != "" {
		attrs = append(attrs, slog.String("text", e.Text))
	}
	if e.Dropped > 0 {
		attrs = append(attrs, slog.Int64("output_dropped", e.Dropped))
	}
	if e.What != action.Started && e.What != action.Printed && (e.What != action.Ended || e.Exit != 0) {
		level = slog.LevelError
	}
	s.log.LogAttrs(context.Background(), level, "program "+e.What, append(attrs, slog.String("hook", string(j.Hook)),
		slog.String("client", j.Client))...)
	if e.What == action.Printed {
		return
	}
	// A lost line is counted, for status.
	_ = s.audit.RecordAct(audit.Act{Time: s.now(), Act: string(j.Hook), Program: "spa-server", Client: j.Client,
		Source: j.Address, By: audit.By{UID: os.Getuid()}, More: append(attrs, slog.String("result", e.What))})
}

// reloadActions applies the programs of changed settings, and returns how to go back.
func (s *Server) reloadActions(is *config.Config) (undo func() error, err error) {
	switch {
	case s.actions == nil && !runsPrograms(is):
		return func() error { return nil }, nil
	case s.actions == nil:
		return nil, denied("systemctl restart spa-server (grants and sessions continue)",
			"a restart is needed for the first service that runs a program: nothing was changed")
	}
	if undo, err = s.actions.Reload(is); err != nil {
		return nil, denied("nothing was changed: fix this and reload again", strings.Split(err.Error(), "\n")...)
	}
	return undo, nil
}

func (s *Server) actionStatus() *control.Actions {
	if s.actions == nil {
		return nil
	}
	is := s.actions.Status()
	a := &control.Actions{PID: is.PID, Running: is.Running, Waiting: is.Waiting, Failed: is.Stuck,
		Unfit: []control.Unfit{}, Counts: []control.Action{}}
	if is.Trouble != nil {
		a.Trouble = is.Trouble.Error()
	}
	if is.Unsaved != nil {
		a.Unsaved = is.Unsaved.Error()
	}
	for service, why := range is.Unfit {
		a.Unfit = append(a.Unfit, control.Unfit{Service: service, Why: why})
	}
	slices.SortFunc(a.Unfit, func(a, b control.Unfit) int { return cmp.Compare(a.Service, b.Service) })
	for what, n := range is.Counts {
		a.Counts = append(a.Counts, control.Action{Service: what.Service, Hook: string(what.Hook), What: what.What, Count: n})
	}
	slices.SortFunc(a.Counts, func(a, b control.Action) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.What, b.What))
	})
	return a
}
