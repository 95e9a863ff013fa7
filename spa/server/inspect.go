package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sallyport/firewall"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/policy"
	"sallyport/spa/replay"
	"sallyport/spa/server/control"
	"sallyport/spa/server/feed"
	"sallyport/spa/server/setup"
)

// Inspect runs the packets of a capture file through the line, each at the time of its capture, and reports what a
// gateway would have decided that was started just before the first, with the files as they are now. It touches
// neither firewall nor journal, answers no packet, and needs only the right to read the files.
//
// Noise is reported at the end, one decision for each reason. The Stats are those of the file. If there is an error
// in the middle of the file, the decisions before it have been reported.
func Inspect(ctx context.Context, c *config.Config, file io.Reader, log *slog.Logger,
	tell func(control.Decision) error) (capture.Stats, error) {
	in, err := capture.OpenFile(file, captureConfig(c))
	if err != nil {
		return capture.Stats{}, err
	}
	packet, at, err := in.Read()
	if errors.Is(err, io.EOF) {
		return in.Stats(), nil
	}
	if err != nil {
		return in.Stats(), err
	}
	s, err := openPast(ctx, c, log, &at)
	if err != nil {
		return in.Stats(), err
	}
	noise := make(map[string]control.Decision) // by its reason
	for err == nil && ctx.Err() == nil {
		if told := s.inspect(ctx, packet, noise, tell); told != nil {
			return in.Stats(), errors.Join(told, s.Close())
		}
		packet, at, err = in.Read()
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	for _, reason := range slices.Sorted(maps.Keys(noise)) {
		err = errors.Join(err, tell(noise[reason]))
	}
	return in.Stats(), errors.Join(err, ctx.Err(), s.Close())
}

// inspect decides one packet and reports it, or counts it as noise.
func (s *Server) inspect(ctx context.Context, p capture.Packet, noise map[string]control.Decision,
	tell func(control.Decision) error) error {
	event := s.handle(ctx, p)
	if p.Frame != nil && event.Verdict.Spent() {
		s.checks.keep(p, event)
	}
	d := feed.DecisionOf(event)
	if event.Client != "" || event.Verdict != audit.Unopened {
		return tell(d)
	}
	d.From, d.Packets = netip.AddrPort{}, noise[d.Reason].Packets+1 // nothing of it is worth a look
	noise[d.Reason] = d
	return nil
}

// openPast opens what the line needs for packets of the past: a temporary journal, and a firewall that enforces
// nothing. Its clock is at.
func openPast(ctx context.Context, c *config.Config, log *slog.Logger, at *time.Time) (*Server, error) {
	s := &Server{config: c, dir: c.Dir, log: log, now: func() time.Time { return *at }, since: *at,
		seen: newSightings(), feed: feed.New()}
	for _, step := range []func() error{s.openKeys, s.openScratch, func() error { return s.openDryRun(ctx) }} {
		if err := step(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	s.shared.member = nil // it decides alone
	return s, nil
}

// openScratch opens an empty journal in a file without a name: however the program ends, nothing is left.
func (s *Server) openScratch() error {
	dir, err := os.MkdirTemp("", "spa-inspect-")
	if err != nil {
		return fmt.Errorf("creating a temporary replay journal: %w", err)
	}
	defer os.RemoveAll(dir)
	rc := replay.Config{Window: s.config.Window, LiveNonces: s.config.Limits.LiveNonces}
	path := filepath.Join(dir, config.JournalFile)
	if err := replay.Create(path, rc, s.now()); err != nil {
		return err
	}
	journal, err := replay.Open(path, rc, s.now())
	if err != nil {
		return err
	}
	s.journal = journal
	s.keep(journal)
	return nil
}

func (s *Server) openDryRun(ctx context.Context) error {
	fc := setup.FirewallConfig(s.config, s.clients, s.now)
	fc.Backend, fc.Mode, fc.Persist, fc.State = firewall.BackendDryRun, firewall.Guard, firewall.PersistOwner, ""
	fw, err := firewall.New(fc, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	s.firewall = fw
	s.keep(fw)
	s.policy = policy.New(s.config, fw)
	return fw.Load(ctx, 0, s.now())
}

// captureConfig describes which packets may be knocks.
func captureConfig(c *config.Config) capture.Config {
	ports := make([]uint16, len(c.KnockPorts))
	for i, port := range c.KnockPorts {
		ports[i] = port.Port
	}
	return capture.Config{Ports: ports, MinLen: spa.MinLen, MaxLen: spa.MaxLen, Interfaces: c.Capture.Interfaces,
		Browser: c.Capture.Browser}
}
