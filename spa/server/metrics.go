package server

import (
	"fmt"
	"path/filepath"
	"slices"

	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/metrics"
	"sallyport/spa/server/setup"
)

// openMetrics opens the page for Prometheus, if it is configured.
func (s *Server) openMetrics() error {
	m := s.config.Metrics
	if !m.On() {
		return nil
	}
	owner, _, err := sandbox.Becomes(setup.SystemUser)
	if err != nil {
		return err
	}
	open := func() (err error) {
		s.metrics, err = metrics.Open(m, owner, metrics.Options{Version: s.named, Start: s.since, Clients: m.Clients,
			Sample: s.sample, Log: s.log})
		return err
	}
	if path, ok := m.Socket(); ok {
		open = setup.Either(path, open)
	}
	if err := open(); err != nil {
		return fmt.Errorf("%s: metrics.listen: %w", filepath.Join(s.dir, config.FileName), err)
	}
	s.keep(s.metrics)
	s.firewall.Time(s.metrics.Changed)
	return nil
}

// sample returns the values for the page.
func (s *Server) sample() metrics.Sample {
	now := s.now()
	s.line.Lock()
	registry, byClient := s.clients, s.config.Metrics.Clients
	s.line.Unlock()
	m := metrics.Sample{
		Packets: allCounts(s.tally()), LeftOut: len(registry.Bad()), Lost: s.audit.Lost().Lines,
		LogMoved: s.audit.Named() != nil, Actions: s.actionStatus(),
		Recovery: s.recoverySample(), Fleet: s.fleetStatus(now),
	}
	m.Live = s.firewall.Count(now)
	if byClient {
		for _, g := range shown(s.firewall.Grants(now)) {
			m.Grants = append(m.Grants, g.Client)
		}
	}
	for c := range registry.All() {
		m.Clients = append(m.Clients, c.Name)
	}
	seen := captured(s.sniffer.Stats())
	m.Capture = metrics.Capture{Received: seen.Received, Passed: seen.Passed, Framed: seen.Framed,
		Dropped: seen.KernelDrops,
		Ignored: map[string]uint64{
			"wrong interface": seen.WrongInterface, "not for this host": seen.NotForUs, "own source": seen.OwnSource,
			"bad source": seen.BadSource, "fragment": seen.Fragment, "IP options": seen.Options,
			"extension header": seen.Extension, "malformed": seen.Malformed, "no packet in STUN": seen.Unframed,
		}}
	m.Gate = gateSample(s.sniffer.Gate().Mode, seen.Gate)
	journal := s.journal.Status()
	m.Floor = journal.FloorUntil.Sub(now)
	m.Journal = metrics.Journal{Live: journal.Live, Records: journal.Records, Room: journal.Room,
		Damaged: journal.Damaged != "", Faults: s.audit.Faults()}
	guard := s.firewall.Condition()
	m.Guard = metrics.Guard{InPlace: !guard.Missing, Kept: !guard.Unkept, PutBack: guard.PutBack}
	return m
}

// silent are the refusals without an answer, and how their paths end.
var silent = []struct {
	verdict audit.Verdict
	reason  error
}{
	{audit.Unopened, spa.ErrLength}, {audit.Unopened, spa.ErrGate}, {audit.Unopened, spa.ErrClient},
	{audit.Unopened, spa.ErrMAC}, {audit.Unopened, spa.ErrMalformed}, {audit.Unopened, spa.ErrStale},
	{audit.Unopened, spa.ErrRevoked}, {audit.Unopened, spa.ErrRetired}, {audit.Unopened, spa.ErrFrame},
	{audit.Elsewhere, policy.ErrStated}, {audit.Elsewhere, policy.ErrFrom}, {audit.Elsewhere, policy.ErrDeny},
	{audit.Elsewhere, policy.ErrLink},
	{audit.Unspent, replay.ErrSpent}, {audit.Unspent, replay.ErrSpentElsewhere}, {audit.Unspent, replay.ErrFloor},
	{audit.Unspent, replay.ErrForgotten}, {audit.Unspent, replay.ErrFull},
}

// answered are the reasons of refusals that are answered, except for failures of the firewall and of programs.
var answered = []spa.Status{
	spa.ReasonExpired, spa.ReasonNoService, spa.ReasonNotAllowed, spa.ReasonSourceRequired, spa.ReasonTooManyGrants,
	spa.ReasonTooManyPerHour, spa.ReasonSuperseded, spa.ReasonIDReused, spa.ReasonNotNow, spa.ReasonTooManyPorts,
	spa.ReasonOtherFamily, spa.ReasonNoUses, spa.ReasonNetwork,
}

// outcomes returns every verdict and reason with a count of zero: Prometheus cannot see a count rise that it has not
// seen before. Faults of the journal, whose reasons come from the system, are counted separately.
func outcomes() []audit.Count {
	var list []audit.Count
	for _, s := range silent {
		list = append(list, audit.Count{Verdict: s.verdict, Reason: s.reason.Error()})
	}
	for _, reason := range answered {
		list = append(list, audit.Count{Verdict: audit.Denied, Reason: reason.String()})
	}
	return append(list, audit.Count{Verdict: audit.Failed, Reason: spa.ReasonFailed.String()},
		audit.Count{Verdict: audit.Failed, Reason: spa.ReasonNoProgram.String()},
		audit.Count{Verdict: audit.Rechecked}, audit.Count{Verdict: audit.Repeated}, audit.Count{Verdict: audit.Granted},
		audit.Count{Verdict: audit.Closed})
}

// allCounts adds a zero for each outcome that has no count yet.
func allCounts(counted []audit.Count) []audit.Count {
	for _, o := range outcomes() {
		known := func(c audit.Count) bool { return c.Verdict == o.Verdict && c.Reason == o.Reason }
		if !slices.ContainsFunc(counted, known) {
			counted = append(counted, o)
		}
	}
	return counted
}
