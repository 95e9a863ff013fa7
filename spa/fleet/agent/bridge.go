package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/etcd"
	"sallyport/spa/fleet/share"
)

const (
	mostRequests = 4096            // of a server at a time
	writeWithin  = 5 * time.Second // a server that does not read for so long is left
	dialEvery    = time.Second
	noteEvery    = 10 * time.Second
)

// A Bridge carries messages between a gateway that shares its address and the store that its site's members use. It
// understands names and values no more than the store does: spa-server seals them.
type Bridge struct {
	Socket  string // of the gateway's server
	Gateway string
	Fleet   keys.FleetID
	Store   *etcd.Store
	Log     *slog.Logger

	member             *etcd.Member // of the last server
	site               string
	memory             time.Duration
	server, use, noise notes
}

// errUnfit means that a server is not the one that agent.toml describes.
var errUnfit = errors.New("agent.toml does not fit the gateway's server")

// Run serves the gateway's server until ctx ends. It connects again whenever one of the two is gone.
func (b *Bridge) Run(ctx context.Context) {
	for ctx.Err() == nil {
		err := b.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, errUnfit) {
			err = fmt.Errorf("no connection to the gateway's server: %w", err)
		}
		b.server.note(b.Log, err)
		select {
		case <-ctx.Done():
		case <-time.After(dialEvery):
		}
	}
}

// connect serves one connection to the server.
func (b *Bridge) connect(ctx context.Context) error {
	dialer := net.Dialer{Timeout: share.AnswerWithin}
	conn, err := dialer.DialContext(ctx, "unix", b.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, leave := context.WithCancelCause(ctx)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := &serving{Bridge: b, conn: share.NewConn(prompt{conn}), leave: leave,
		free: make(chan struct{}, mostRequests)}
	err = s.run(ctx)
	leave(err)
	s.all.Wait()
	return context.Cause(ctx)
}

// prompt is a connection on which writing takes a limited time.
type prompt struct{ net.Conn }

// Write implements io.Writer.
func (p prompt) Write(text []byte) (int, error) {
	p.SetWriteDeadline(time.Now().Add(writeWithin))
	return p.Conn.Write(text)
}

// serving is one connection to the server.
type serving struct {
	*Bridge
	conn    *share.Conn
	leave   context.CancelCauseFunc // ends the connection
	free    chan struct{}           // has an element for each request without an answer
	all     sync.WaitGroup
	reading func() // ends what the last Read began
}

// run reads what the server sends.
func (s *serving) run(ctx context.Context) error {
	hello, err := s.conn.Read()
	if err != nil {
		return err
	}
	if err := s.greet(hello); err != nil {
		return err
	}
	s.server.note(s.Log, nil)
	s.Log.Info("connected to the gateway's server", "site", hello.Site)
	for {
		m, err := s.conn.Read()
		if err != nil {
			return err
		}
		switch m.Kind {
		case share.Read:
			s.read(ctx, m.Seq)
		case share.Leave: // its connection ends now, and its session shall
			if err := s.member.Leave(context.WithoutCancel(ctx), m.Run.String()); err != nil {
				s.Log.Warn("the session ends by itself", "error", err)
			}
		case share.AskSession, share.Spend, share.Settle, share.PutFloor, share.Ack:
			s.free <- struct{}{}
			s.all.Go(func() {
				defer func() { <-s.free }()
				s.send(s.answer(ctx, m))
			})
		default:
			return fmt.Errorf("the server sent a message of kind %q", m.Kind)
		}
	}
}

// greet takes the server's first message. A server that was restarted has the same member, which knows the session of
// the last run.
func (s *serving) greet(hello share.Message) error {
	switch {
	case hello.Kind != share.Hello || hello.Version != share.Version:
		return fmt.Errorf("%w: the server speaks version %d, and this agent version %d: install the same release", errUnfit,
			hello.Version, share.Version)
	case hello.Fleet != s.Fleet.String():
		return fmt.Errorf("%w: it is in the fleet %s, and not in %s", errUnfit, hello.Fleet, s.Fleet)
	case hello.Member != s.Gateway:
		return fmt.Errorf("%w: it is the gateway %s, and not %s", errUnfit, hello.Member, s.Gateway)
	}
	memory := time.Duration(hello.Seconds) * time.Second
	if s.member == nil || s.site != hello.Site || s.memory != memory {
		s.site, s.memory = hello.Site, memory
		s.member = s.Store.Member(hello.Site, hello.Member, memory)
	}
	return nil
}

// send sends messages. If it cannot, the connection ends.
func (s *serving) send(m share.Message) {
	if err := s.conn.Write(m); err != nil {
		s.leave(err)
	}
}

// answer carries out a request.
func (s *serving) answer(ctx context.Context, m share.Message) share.Message {
	keep := time.Duration(m.Seconds) * time.Second
	failed := share.Message{Kind: share.Failed, Seq: m.Seq}
	done := share.Message{Kind: share.Done, Seq: m.Seq}
	var err error
	switch m.Kind {
	case share.AskSession:
		return s.session(ctx, m)
	case share.Spend:
		return s.spend(ctx, m)
	case share.Settle:
		err = s.member.Settle(ctx, m.ID.String(), m.Value, keep)
	case share.PutFloor:
		done.Revision, err = s.member.Floor(ctx, m.ID.String(), m.Value, keep)
	case share.Ack:
		err = s.member.Ack(ctx, m.Run.String(), m.Revision)
	}
	if err != nil {
		return failed
	}
	return done
}

func (s *serving) session(ctx context.Context, m share.Message) share.Message {
	made, err := s.member.Session(ctx, m.Run.String())
	failed := share.Message{Kind: share.Failed, Seq: m.Seq}
	switch {
	case err == nil:
		s.use.note(s.Log, nil)
		return share.Message{Kind: share.InSession, Seq: m.Seq, Revision: made}
	case errors.Is(err, etcd.ErrLost):
		s.leave(err) // the server begins anew
		return failed
	case ctx.Err() != nil:
		return failed
	}
	s.use.note(s.Log, err)
	if errors.Is(err, etcd.ErrTaken) {
		return share.Message{Kind: share.Refused, Seq: m.Seq}
	}
	return failed
}

func (s *serving) spend(ctx context.Context, m share.Message) share.Message {
	got, err := s.member.Spend(ctx, m.Nonce.String(), m.ID.String(), m.Token.String())
	answer := share.Message{Kind: share.Repeat, Seq: m.Seq, Value: got.Outcome}
	switch {
	case err != nil:
		answer.Kind = share.Failed
	case got.Won:
		answer.Kind = share.Won
	case got.Spent:
		answer.Kind = share.Spent
	default:
		if answer.Token, err = share.ParseToken(got.Token); err != nil || len(got.Outcome) > share.MaxValue {
			answer = share.Message{Kind: share.Failed, Seq: m.Seq} // no member wrote this
		}
	}
	return answer
}

// read sends what the store has, and changes, until the server asks again.
func (s *serving) read(ctx context.Context, seq uint64) {
	if s.reading != nil {
		s.reading()
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	s.reading = func() { cancel(); <-ended }
	s.all.Go(func() {
		defer close(ended)
		begun := false
		err := s.member.Follow(ctx, func(e etcd.Event) {
			begun = true
			m := message(e, seq)
			if _, err := m.Line(); err != nil {
				s.noise.note(s.Log, fmt.Errorf("ignored what no member of the site writes: %.60q: %w", e.Key, err))
			} else if ctx.Err() == nil {
				s.send(m)
			}
		}, func(err error) {
			if !begun { // the server asks again
				cancel()
				return
			}
			s.Log.Warn("reading the store again", "error", err)
		})
		switch {
		case errors.Is(err, etcd.ErrLost):
			s.leave(err)
		case !begun:
			s.send(share.Message{Kind: share.Failed, Seq: seq})
		}
	})
}

// message returns an event as it is sent to the server that asked with this number.
func message(e etcd.Event, seq uint64) share.Message {
	switch e.Kind {
	case etcd.Begin:
		return share.Message{Kind: share.Begin, Seq: seq, Revision: e.Revision}
	case etcd.End:
		return share.Message{Kind: share.End, Seq: seq}
	}
	return share.Message{Kind: share.Event, Key: e.Key, Value: e.Value, Deleted: e.Kind == etcd.Delete,
		Revision: e.Revision}
}

// notes logs trouble once, its end, and not too often that it is now another.
type notes struct {
	mu   sync.Mutex
	last string
	at   time.Time
}

func (n *notes) note(log *slog.Logger, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case err == nil && n.last != "":
		log.Info("over: " + n.last)
		n.last = ""
	case err != nil && (n.last == "" || n.last != err.Error() && time.Since(n.at) > noteEvery):
		n.last, n.at = err.Error(), time.Now()
		log.Warn(n.last)
	}
}
