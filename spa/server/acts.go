package server

import (
	"log/slog"
	"slices"
	"strings"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/audit"
	"sallyport/spa/server/acts"
	"sallyport/spa/server/control"
)

// record puts an act of another program into the audit log.
func (s *Server) record(r control.Request) error {
	a := r.Act
	if a == nil || !slices.Contains([]string{"spa-keygen", "spa-server"}, a.Program) ||
		!slices.Contains([]string{"new", "set", "rotate", "revoke", "rotate-gate", "teardown"}, a.Act) {
		return denied("", "there is no such act")
	}
	_, badKey := keys.ParseID(a.Key)
	if a.Client != "" && service.ValidName(a.Client) != nil || a.Key != "" && badKey != nil {
		return denied("", "the act names no client, or no key")
	}
	for _, text := range a.Services {
		if _, err := service.ParsePorts(text); err != nil && service.ValidName(text) != nil {
			return denied("", "the act names no service")
		}
	}
	for _, key := range a.Settings {
		if len(key) > 128 || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" {
			return denied("", "the act names no setting")
		}
	}
	if err := s.audit.RecordAct(acts.Of(*a, r.By, r.UID, s.now())); err != nil {
		return denied("", "the audit log has no line of it: "+err.Error())
	}
	return nil
}

// recordRevoke records a revocation of grants, and why sessions could not be ended. Status counts a lost line.
func (s *Server) recordRevoke(r control.Request, grants, sessions int, failed error) {
	more := []slog.Attr{slog.Int("grants", grants)}
	if r.Cut {
		more = append(more, slog.Int("sessions", sessions))
	}
	if failed != nil {
		more = append(more, slog.String("reason", failed.Error()))
	}
	_ = s.audit.RecordAct(audit.Act{Time: s.now(), Act: "revoke", Program: "spa-server", Client: r.Client,
		Source: r.Source, By: acts.Who(r.By, r.UID), More: more})
}

// recordReload records what a reload changed.
func (s *Server) recordReload(r control.Request, changes *control.Reloaded) {
	_ = s.audit.RecordAct(audit.Act{Time: s.now(), Act: "reload", Program: "spa-server", By: acts.Who(r.By, r.UID),
		More: []slog.Attr{slog.Any("settings", changes.Settings), slog.Int("added", len(changes.Added)),
			slog.Int("changed", len(changes.Changed)), slog.Int("removed", len(changes.Removed)),
			slog.Int("grants", len(changes.Ended))}})
}
