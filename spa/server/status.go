package server

import (
	"cmp"
	"os"
	"slices"
	"time"

	"sallyport/spa"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// mostSeen is how many clients a status lists, so that it fits into one answer.
const mostSeen = 2000

// status returns what the server knows about itself.
func (s *Server) status() *control.Status {
	now := s.now()
	s.line.Lock()
	c, own, gates, clients := s.config, s.ownGates, s.identity.Gates, s.clients.Len()
	s.line.Unlock()
	st := &control.Status{
		Name: c.Name, Address: c.Address, PID: os.Getpid(), Since: s.since, Now: now, Version: s.named,
		Protocol: spa.Version, Loaded: setup.Loaded(c.Text(), own),
		Interfaces: c.Capture.Interfaces, KnockPorts: knockPorts(c), Bound: c.Bound(), Guards: guards(c),
		Receipts: c.Receipts, Window: c.Window.String(),
		Firewall: s.firewallStatus(c.Firewall.Mode),
		Gate:     s.gateStatus(gates, now),
		Clients:  clients, Grants: s.firewall.Count(now), Decided: s.decided(),
		Capture: captured(s.sniffer.Stats()), Watchers: s.feed.Watching(),
		Audit: s.auditStatus(c.Audit), LeftOut: s.leftOut(),
		Rights: privileges(s.sandbox), Processes: []control.Process{}, Actions: s.actionStatus(),
		Recovery: s.recoveryStatus(), Fleet: s.fleetStatus(now),
	}
	for _, p := range s.firewall.Processes() {
		st.Processes = append(st.Processes, control.Process{Name: p.Name, PID: p.PID, Rights: privileges(p.Privileges)})
	}
	if len(st.Interfaces) == 0 {
		st.Interfaces, st.All = s.sniffer.Interfaces(), true
	}
	journal := s.journal.Status()
	st.Journal = control.Journal{Live: journal.Live, Records: journal.Records, Room: journal.Room,
		Damaged: journal.Damaged}
	if now.Before(journal.FloorUntil) {
		st.Floor = &control.Floor{Until: journal.FloorUntil, Reason: journal.Reason}
	}
	s.seen.tell(st)
	return st
}

func (s *Server) auditStatus(where config.Audit) control.Audit {
	a := control.Audit{File: where.File}
	if where.Journal {
		a.File = "journal"
	}
	if err := s.audit.Named(); err != nil {
		a.Moved, a.Mend = err.Error(), s.mendAudit(where.File, err)
	}
	if lost := s.audit.Lost(); lost.Lines > 0 {
		a.Lost, a.LostAt, a.LostWhy = lost.Lines, lost.Last, lost.Err.Error()
	}
	return a
}

func (s *Server) firewallStatus(mode string) control.Firewall {
	condition := s.firewall.Condition()
	return control.Firewall{
		Backend: s.firewall.BackendName(), Mode: mode, Sentence: s.firewall.Describe(), Persists: s.firewall.Persists(),
		Missing: condition.Missing, Unkept: condition.Unkept, Trial: condition.Trial,
		TrialBy: condition.TrialBy,
	}
}

func privileges(left sandbox.State) control.Privileges {
	return control.Privileges{
		User: left.User, UID: left.UID, GID: left.GID, Capabilities: left.Capabilities, Bounding: left.Bounding,
		NoNewPrivs: left.NoNewPrivs, Landlock: left.Landlock, Calls: left.Calls, Notes: left.Notes,
	}
}

func captured(st capture.Stats) control.Capture {
	return control.Capture{
		Received: received(st), Passed: st.Passed, WrongInterface: st.WrongInterface, NotForUs: st.NotForUs,
		OwnSource: st.OwnSource, BadSource: st.BadSource, Fragment: st.Fragment, Options: st.Options,
		Extension: st.Extension, Malformed: st.Malformed, Unframed: st.Unframed, Framed: st.Framed,
		KernelDrops: st.KernelDrops, Gate: gateDrops(st.Gate),
	}
}

// tell adds the sightings to a status, the latest first.
func (s *sightings) tell(st *control.Status) {
	s.gather(st)
	slices.SortFunc(st.Seen, func(a, b control.Seen) int {
		return cmp.Or(heard(b).Compare(heard(a)), cmp.Compare(a.Client, b.Client))
	})
	if extra := len(st.Seen) - mostSeen; extra > 0 {
		st.Seen, st.MoreSeen = st.Seen[:mostSeen], extra
	}
}

func (s *sightings) gather(st *control.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := shown(s.last); len(last) > 0 {
		st.LastGrant = &last[len(last)-1]
		st.LastGrant.Since = s.lastAt
	}
	st.Seen = make([]control.Seen, 0, len(s.of))
	for client, w := range s.of {
		if w.at.IsZero() && w.stale.packets == 0 {
			continue // it only knocked too early
		}
		st.Seen = append(st.Seen, w.tell(client))
	}
}

// heard returns when a client's key was last heard of.
func heard(s control.Seen) time.Time {
	if s.Stale != nil {
		return s.Stale.Last
	}
	return s.Last
}

func (w *sighting) tell(client string) control.Seen {
	seen := control.Seen{Client: client, Last: w.at, From: w.from, Ahead: w.offset.Seconds(),
		OldKey: w.oldKey, OldGate: w.oldGate}
	if w.stale.packets > 0 {
		seen.Stale = &control.Stale{Packets: w.stale.packets, Last: w.stale.at, From: w.stale.from,
			Ahead: w.stale.offset.Seconds()}
	}
	return seen
}
