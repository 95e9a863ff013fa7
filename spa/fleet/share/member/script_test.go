package member_test

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
)

var shareKey = share.DeriveKey([]byte("seed"), keys.ServerID{2})

// A host is a server that keeps what its member tells it.
type host struct {
	t         *testing.T
	m         *member.Member
	agents    chan net.Conn
	decided   []verdict
	installed []string
	raised    []string
	failing   bool          // nothing can be raised
	line      chan struct{} // nil, or Install and Raise wait for it
}

type verdict struct {
	how     member.How
	nonce   byte
	outcome string
	attempt *member.Attempt
	after   time.Duration
}

func (h *host) Install(n member.News) {
	h.wait()
	h.installed = append(h.installed, string(n.Outcome))
}

func (h *host) wait() {
	if h.line != nil {
		<-h.line
	}
}

// lets one of those that wait for the line go on.
func (h *host) lets() {
	h.t.Helper()
	select {
	case h.line <- struct{}{}:
	case <-time.After(time.Minute):
		h.t.Fatal("nobody waits for the line")
	}
}

func (h *host) Raise(floor []byte) error {
	h.wait()
	if h.failing {
		return context.Canceled
	}
	h.raised = append(h.raised, string(floor))
	return nil
}

// spend spends a packet of a client.
func (h *host) spend(client keys.ID, nonce, request byte) bool {
	began := time.Now()
	return h.m.Spend(&member.Spend{Key: client, Nonce: [24]byte{nonce}, Request: [16]byte{request},
		Decide: func(how member.How, a *member.Attempt, outcome []byte) {
			h.decided = append(h.decided, verdict{how, nonce, string(outcome), a, time.Since(began)})
		}})
}

// hows returns what was decided, with the first byte of each nonce: "1a" for an act of nonce 1.
func (h *host) hows() string {
	synctest.Wait()
	var text string
	for _, v := range h.decided {
		text += strconv.Itoa(int(v.nonce)) + map[member.How]string{member.Act: "act ", member.Repeat: "repeat ",
			member.Alone: "alone "}[v.how]
	}
	return text
}

// An outlet is an agent that answers for sessions and readings by itself, and leaves all else to the test.
type outlet struct {
	*share.Conn
	net      net.Conn
	t        *testing.T
	other    chan share.Message // what the test answers
	session  atomic.Int64
	revision atomic.Int64
	has      []share.Message // floors, sessions and acknowledgements at first
	after    []share.Message // outcomes
	silent   atomic.Bool     // no answer about sessions
	mute     atomic.Bool     // no answer to readings
	refusing atomic.Bool     // another run has it
	slow     atomic.Int64    // nanoseconds before an answer about sessions
	asked    atomic.Int64    // how often a session was asked for
	reads    int
	seq      uint64 // of the last reading
}

func config(to member.Site) member.Config {
	return member.Config{Fleet: keys.FleetID{1}, Site: "gw", Member: "gw1", Key: shareKey, Window: window, To: to}
}

// scripted runs a test with a member whose agent is the test.
func scripted(t *testing.T, change func(*member.Config), test func(*host)) {
	synctest.Test(t, func(t *testing.T) {
		h := &host{t: t, agents: make(chan net.Conn)}
		c := config(h)
		if change != nil {
			change(&c)
		}
		h.m = member.New(c)
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			h.m.Run(ctx, h.agents)
			close(ended)
		}()
		synctest.Wait()
		test(h)
		end()
		<-ended
	})
}

// outlet connects an agent.
func (h *host) outlet(change func(*outlet)) *outlet {
	here, there := net.Pipe()
	o := &outlet{Conn: share.NewConn(there), net: there, t: h.t, other: make(chan share.Message, 2*member.MaxSpends)}
	o.session.Store(5)
	o.revision.Store(10)
	if change != nil {
		change(o)
	}
	h.agents <- here
	go o.serve()
	synctest.Wait()
	return o
}

func (o *outlet) serve() {
	defer close(o.other)
	defer o.net.Close()
	for {
		m, err := o.Read()
		if err != nil {
			return
		}
		switch m.Kind {
		case share.Hello:
		case share.AskSession:
			o.asked.Add(1)
			time.AfterFunc(time.Duration(o.slow.Load()), func() { o.inSession(m) })
		case share.Read:
			o.reads++
			o.seq = m.Seq
			if !o.mute.Load() {
				o.begin()
			}
		default:
			o.other <- m
		}
	}
}

// inSession answers a member that asks for a session.
func (o *outlet) inSession(m share.Message) {
	switch {
	case o.silent.Load():
	case o.refusing.Load():
		o.Write(share.Message{Kind: share.Refused, Seq: m.Seq})
	default:
		o.Write(share.Message{Kind: share.InSession, Seq: m.Seq, Revision: o.session.Load()})
	}
}

// begin sends what there is.
func (o *outlet) begin() {
	ms := append([]share.Message{{Kind: share.Begin, Seq: o.seq, Revision: o.revision.Load()}}, o.has...)
	ms = append(ms, share.Message{Kind: share.End, Seq: o.seq})
	o.Write(append(ms, o.after...)...)
}

// next returns the next request of this kind.
func (o *outlet) next(kind share.Kind) share.Message {
	o.t.Helper()
	for {
		synctest.Wait()
		select {
		case m := <-o.other:
			if m.Kind == kind {
				return m
			}
		default:
			o.t.Fatalf("the member does not send %s", kind)
		}
	}
}

// none fails if there is a request of this kind.
func (o *outlet) none(kind share.Kind) {
	o.t.Helper()
	for {
		synctest.Wait()
		select {
		case m, ok := <-o.other:
			if m.Kind == kind {
				o.t.Fatalf("the member sends %v", m)
			}
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// answer answers a request.
func (o *outlet) answer(to, m share.Message) {
	m.Seq = to.Seq
	if err := o.Write(m); err != nil {
		o.t.Errorf("answering %s: %v", to.Kind, err)
	}
	synctest.Wait()
}

// event reports a change.
func (o *outlet) event(key string, value []byte) {
	o.Write(share.Message{Kind: share.Event, Key: key, Value: value, Deleted: value == nil,
		Revision: o.revision.Add(1)})
	synctest.Wait()
}

// sealed returns what another member wrote at this place.
func sealed(place, text string) []byte {
	head := make([]byte, 24) // its run and the time
	head[0] = 1
	return shareKey.Seal(share.Prefix(keys.FleetID{1}, "gw")+place, append(head, text...))
}

// place returns a key of this kind.
func place(kind string, n byte) string { return kind + "/" + share.Name{n}.String() }
