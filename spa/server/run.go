package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/capture"
	"sallyport/spa/config"
	"sallyport/spa/replay"
)

// Run reads packets until parent ends, and then returns nil. It returns earlier only if the gateway cannot work:
// [firewall.ErrTornDown] and [firewall.ErrUnconfirmed] are among the reasons. In any case the server is closed, and
// guard and grants stay in the kernel.
func (s *Server) Run(parent context.Context) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)

	beside := []func(context.Context) error{s.firewall.Watch, s.watchClients, s.serveControl,
		func(ctx context.Context) error { return s.feed.TellEnds(ctx, s.now) }}
	if s.metrics != nil {
		beside = append(beside, s.metrics.Serve)
	}
	if s.fleet != nil {
		beside = append(beside, s.watchBundle, s.share)
	}
	if s.actions != nil {
		beside = append(beside, s.actions.Run)
	}
	ended := make(chan struct{}, len(beside))
	for _, run := range beside {
		go func() {
			cancel(run(ctx)) // does nothing once ctx has ended
			ended <- struct{}{}
		}()
	}
	stop := context.AfterFunc(ctx, func() { s.sniffer.Close() })
	defer stop()

	s.ready()
	cancel(s.loop(ctx))
	for range beside {
		<-ended
	}
	s.notify(notifyStopping)
	err := context.Cause(ctx)
	if parent.Err() != nil { // it was asked to stop
		s.log.Info("stopped: the guard stays in place, and grants end on time", s.counted())
		err = nil
	}
	return errors.Join(err, s.Close())
}

// counted returns the packets by verdict, for the log; status shows the reasons.
func (s *Server) counted() slog.Attr {
	byVerdict := make(map[string]uint64)
	for what, n := range s.decided() {
		verdict, _, _ := strings.Cut(what, ":")
		byVerdict[verdict] += n
	}
	stats := s.sniffer.Stats()
	attrs := []any{slog.Uint64("all", received(stats)), slog.Uint64("lost", stats.KernelDrops)}
	for _, verdict := range slices.Sorted(maps.Keys(byVerdict)) {
		attrs = append(attrs, slog.Uint64(verdict, byVerdict[verdict]))
	}
	return slog.Group("packets", attrs...)
}

// loop is the line's loop: one goroutine, one packet at a time.
func (s *Server) loop(ctx context.Context) error {
	for {
		packet, err := s.sniffer.Read()
		if errors.Is(err, net.ErrClosed) {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		s.process(ctx, packet)
	}
}

// process decides one packet, records the result, and answers it: if receipts are on and the packet was spent, or came
// too early as tooEarly describes, or is a browser's repetition of a spent one. Nothing else is ever answered. What
// becomes of a pending packet, pending.decide reports.
func (s *Server) process(ctx context.Context, p capture.Packet) {
	s.line.Lock()
	event := s.handle(ctx, p)
	if event.Verdict == audit.Pending {
		s.line.Unlock()
		return
	}
	s.report(p, event)
}

// report records what became of a packet, and answers it. The caller holds the line; report lets go of it.
func (s *Server) report(p capture.Packet, event audit.Event) {
	if event.Client != "" {
		s.seen.note(event)
	}
	s.feed.Tell(event) // before anything can end the grant
	c := s.config      // a reload replaces it
	if p.Frame != nil && event.Verdict.Spent() {
		s.checks.keep(p, event)
	}
	answered := c.Receipts && (event.Verdict.Spent() || event.Verdict == audit.Rechecked ||
		event.Knock != nil && p.Frame == nil && s.tooEarly(&event))
	s.line.Unlock()
	s.audit.Record(event)
	s.noteCopy(p, event.Err)
	if s.metrics != nil && event.Verdict.Spent() {
		s.metrics.Decided(event, s.now().Sub(event.Time))
	}
	if answered {
		s.answer(c, p, event)
	}
}

// earlyPause is the shortest time between two answers that tell a client that it knocks too early.
const earlyPause = time.Second

// tooEarly adds a receipt with the time from which packets are accepted, if the packet is good except for the floor
// that a reboot or a lost journal left. The packet stays unspent, so copies come here too. Only a packet that states
// its source and came from there is answered, so that no one can send the answer to another host. Answers are rare.
func (s *Server) tooEarly(e *audit.Event) bool {
	if !errors.Is(e.Err, replay.ErrFloor) || !e.Knock.Source.IsValid() || !s.seen.mayTell(e.Client, e.Time) {
		return false
	}
	*e = e.Answer(spa.Receipt{Status: spa.ReasonTooEarly, Again: s.journal.Status().Floor})
	return true
}

// ready reports to the administrator and to systemd that the gateway works.
func (s *Server) ready() {
	s.line.Lock() // a reload may be on its way
	c := s.config
	s.line.Unlock()
	s.log.Info("ready",
		"version", s.named,
		"knocks", strings.Join(knockPorts(c), " "),
		"guards", strings.Join(guards(c), " "),
		"firewall", s.firewall.Describe(),
		"clients", s.clients.Len(),
		"user", s.sandbox.User,
		"capabilities", s.sandbox.Capabilities)
	for _, note := range s.sandbox.Notes {
		s.log.Warn(note)
	}
	s.notify(notifyReady)
}

func knockPorts(c *config.Config) []string {
	ports := make([]string, 0, len(c.KnockPorts))
	for _, port := range c.KnockPorts {
		ports = append(ports, port.String())
	}
	return ports
}

func guards(c *config.Config) []string {
	guarded := make([]string, 0, len(c.Services))
	for _, service := range c.Services {
		if len(service.Ports) > 0 {
			guarded = append(guarded, service.String())
		}
	}
	return guarded
}

// States for systemd (sd_notify(3)).
const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
)

// openNotify connects to systemd, if that started the server: later no socket can be created.
func (s *Server) openNotify() error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Net: "unixgram", Name: name})
	if err != nil {
		s.log.Warn("cannot notify systemd", "error", err)
		return nil
	}
	s.manager = conn
	s.keep(conn)
	return nil
}

func (s *Server) notify(state string) {
	if s.manager == nil {
		return
	}
	if _, err := s.manager.Write([]byte(state)); err != nil {
		s.log.Warn("could not notify systemd", "state", state, "error", err)
	}
}
