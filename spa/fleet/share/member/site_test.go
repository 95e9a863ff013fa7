package member_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"sallyport/spa/fleet/share/standin"

	"sallyport/keys"
	"sallyport/spa/fleet/share"
	"sallyport/spa/fleet/share/member"
)

const (
	window  = 5 * time.Second
	longest = 40 * time.Second // a grant
	keep    = longest + 3*window
)

var start = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of each run: synctest's

// A packet is what a client sent, and an attacker may deliver anywhere at any time.
type packet struct {
	client       keys.ID
	nonce        [24]byte
	request      [16]byte
	close        bool
	stamp, first time.Time
}

// A site is all that shares an address, with what the properties need to be checked.
type site struct {
	store *store
	gates []*gateway

	mu      sync.Mutex // the line of every gateway: what they do is one after the other
	acts    map[string]int
	answers map[[24]byte]int
	granted map[[16]byte]bool // the client has a receipt that grants
	closed  map[[16]byte]bool // the client has a receipt that closes
	floors  map[keys.ID]time.Time
	history standin.History
	broken  []string
}

func newSite() *site {
	return &site{store: newStore(), acts: make(map[string]int), answers: make(map[[24]byte]int),
		granted: make(map[[16]byte]bool), closed: make(map[[16]byte]bool), floors: make(map[keys.ID]time.Time)}
}

func (s *site) breaks(format string, values ...any) {
	s.broken = append(s.broken, fmt.Sprintf("%s: ", time.Since(start))+fmt.Sprintf(format, values...))
}

// A gateway is a server with its kernel: what it has of the line is enough to do harm.
type gateway struct {
	site    *site
	name    string
	ahead   time.Duration // its clock
	journal bool          // it remembers what it has seen after a crash
	agent   *agent
	fails   func() bool             // what must be written cannot be
	slow    func()                  // waits for the line
	through func(net.Conn) net.Conn // nil, or what the agent has instead of its end of the connection

	run    int // counts its crashes
	m      *member.Member
	agents chan net.Conn
	conn   net.Conn
	end    context.CancelFunc
	ended  chan struct{}
	seen   map[[24]byte]bool
	floors map[keys.ID]time.Time
	grants map[[16]byte]grant // in the kernel
}

type grant struct {
	client       keys.ID
	first, until time.Time
}

// An outcome is what members tell each other.
type outcome struct {
	Request      [16]byte
	Client       keys.ID
	First, Until time.Time // Until zero: nothing granted
	Closed       bool
}

// A floor says up to when a client's requests are refused.
type floor struct {
	Client keys.ID
	Stamp  time.Time
}

func (g *gateway) now() time.Time { return time.Now().Add(g.ahead) }

// boot starts the server.
func (g *gateway) boot() {
	ctx, end := context.WithCancel(context.Background())
	g.site.mu.Lock()
	defer g.site.mu.Unlock()
	g.end, g.ended, g.agents = end, make(chan struct{}), make(chan net.Conn)
	if !g.journal || g.seen == nil {
		g.seen, g.floors = make(map[[24]byte]bool), make(map[keys.ID]time.Time)
	}
	g.m = member.New(member.Config{Fleet: keys.FleetID{1}, Site: "gw", Member: g.name, Window: window,
		Key: share.DeriveKey([]byte("seed"), keys.ServerID{2}), To: life{g, g.run}})
	m, agents, ended := g.m, g.agents, g.ended
	go func() {
		m.Run(ctx, agents)
		close(ended)
	}()
}

// crash ends the server between two instructions: nothing that runs on has an effect.
func (g *gateway) crash() {
	g.site.mu.Lock()
	g.run++
	conn := g.conn
	g.site.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	g.end()
	<-g.ended
}

// stop ends the server in order.
func (g *gateway) stop() {
	g.end()
	<-g.ended
}

// dial starts an agent, which dials again when it loses the server.
func (g *gateway) dial() {
	here, there := net.Pipe()
	if g.through != nil {
		there = g.through(there)
	}
	g.site.mu.Lock()
	if g.conn != nil {
		g.conn.Close()
	}
	g.conn = there
	a, agents, ended := g.agent.again(), g.agents, g.ended
	g.site.mu.Unlock()
	select {
	case agents <- here:
	case <-ended:
		there.Close()
		return
	}
	go func() {
		a.serve(there)
		time.Sleep(time.Second)
		g.site.mu.Lock()
		replaced := g.conn != there
		g.site.mu.Unlock()
		if !replaced {
			g.dial()
		}
	}()
}

// life is one run of a gateway.
type life struct {
	g   *gateway
	run int
}

// lock reports whether the run goes on.
func (l life) lock() bool {
	l.g.slow()
	l.g.site.mu.Lock()
	return l.run == l.g.run
}

// deliver brings a packet to a gateway.
func (g *gateway) deliver(p packet) {
	g.site.mu.Lock()
	defer g.site.mu.Unlock()
	if !g.fresh(p) || g.seen[p.nonce] {
		return
	}
	late := g.superseded(p.client, p.first, g.site.floors)
	l, came := life{g, g.run}, time.Now()
	if g.m.Spend(&member.Spend{Key: p.client, Nonce: p.nonce, Request: p.request,
		Decide: func(how member.How, a *member.Attempt, text []byte) { l.decide(p, came, late, how, a, text) }}) {
		g.seen[p.nonce] = true
	}
}

func (g *gateway) fresh(p packet) bool {
	d := g.now().Sub(p.stamp)
	return -window <= d && d <= window
}

func (g *gateway) superseded(client keys.ID, first time.Time, floors map[keys.ID]time.Time) bool {
	at, ok := floors[client]
	return ok && !first.After(at)
}

// decide is the rest of the line.
func (l life) decide(p packet, came time.Time, late bool, how member.How, a *member.Attempt, text []byte) {
	g, s := l.g, l.g.site
	alive := l.lock()
	defer s.mu.Unlock()
	switch {
	case !alive:
		return
	case !g.fresh(p) || !g.m.Alive() || how == member.Act && !share.Undone(p.first, g.now(), window):
		g.m.GaveUp(a)
		return
	case how == member.Repeat:
		l.repeat(p, came, text)
		return
	case p.close:
		l.close(p, came, a)
		return
	case g.superseded(p.client, p.first, g.floors):
		s.answer(p, outcome{})
		s.history.Add(p.nonce, p.request, came, true)
		g.m.Settled(a, encode(outcome{Request: p.request, Client: p.client, First: p.first}), time.Time{})
		return
	}
	if late {
		s.breaks("S6: %s lets in %x, stamped before a close that was answered before", g.name, p.request[:4])
	}
	s.act("S1", p.nonce[:])
	s.act("S2", p.request[:])
	o := outcome{Request: p.request, Client: p.client, First: p.first, Until: g.now().Add(longest)}
	g.install(o)
	s.answer(p, o)
	s.history.Add(p.nonce, p.request, came, true)
	g.m.Settled(a, encode(o), o.Until)
}

func (s *site) act(property string, of []byte) {
	key := property + string(of)
	s.acts[key]++
	if s.acts[key] > 1 {
		s.breaks("%s: second act of %x", property, of[:4])
	}
}

// repeat answers with what was done.
func (l life) repeat(p packet, came time.Time, text []byte) {
	o := decode[outcome](text)
	if o.Until.IsZero() || !l.g.superseded(o.Client, o.First, l.g.floors) {
		l.g.site.answer(p, o)
		l.g.site.history.Add(p.nonce, p.request, came, false)
	}
}

// answer is seen by the client.
func (s *site) answer(p packet, o outcome) {
	s.answers[p.nonce]++
	if s.answers[p.nonce] > 1 {
		s.breaks("S4: second answer to %x", p.nonce[:4])
	}
	if !o.Until.IsZero() {
		if at, ok := s.floors[p.client]; ok && !p.first.After(at) {
			s.breaks("S5: receipt for %x after the answer to a close", p.request[:4])
		}
		s.granted[p.request] = true
	}
	s.closed[p.request] = s.closed[p.request] || o.Closed
}

// install changes the kernel.
func (g *gateway) install(o outcome) {
	if at, ok := g.site.floors[o.Client]; ok && !o.First.After(at) {
		g.site.breaks("S3: %s installs %x after the answer to a close", g.name, o.Request[:4])
	}
	g.grants[o.Request] = grant{o.Client, o.First, o.Until}
}

// raise puts a floor into force here.
func (g *gateway) raise(f floor) {
	if f.Stamp.After(g.floors[f.Client]) {
		g.floors[f.Client] = f.Stamp
	}
	for request, has := range g.grants {
		if has.client == f.Client && !has.first.After(f.Stamp) {
			delete(g.grants, request)
		}
	}
}

// close ends a client's grants here, and then everywhere.
func (l life) close(p packet, came time.Time, a *member.Attempt) {
	g, s := l.g, l.g.site
	f := floor{p.client, p.stamp}
	g.raise(f)
	g.m.End(encode(f), keep, func(ok bool) {
		alive := l.lock()
		defer s.mu.Unlock()
		switch {
		case !alive:
			return
		case !ok:
			g.m.GaveUp(a)
			return
		}
		o := outcome{Request: p.request, Client: p.client, First: p.first, Closed: true}
		s.answer(p, o)
		s.history.Add(p.nonce, p.request, came, true)
		s.answered(f)
		g.m.Settled(a, encode(o), time.Time{})
	})
}

// answered is when nothing older may be open at a member that others wait for.
func (s *site) answered(f floor) {
	if f.Stamp.After(s.floors[f.Client]) {
		s.floors[f.Client] = f.Stamp
	}
	for _, g := range s.gates {
		for request, has := range g.grants {
			if has.client == f.Client && !has.first.After(f.Stamp) && g.m.Alive() && g.now().Before(has.until) {
				s.breaks("S3: %s still lets in %x when the close is answered", g.name, request[:4])
			}
		}
	}
}

// Install is that of member.Site.
func (l life) Install(n member.News) {
	alive := l.lock()
	defer l.g.site.mu.Unlock()
	o := decode[outcome](n.Outcome)
	switch {
	case !alive, !l.g.m.Alive(), o.Until.IsZero(), !o.Until.After(l.g.now()):
	case !l.g.superseded(o.Client, o.First, l.g.floors):
		l.g.install(o)
	}
}

// Raise is that of member.Site.
func (l life) Raise(text []byte) error {
	alive := l.lock()
	defer l.g.site.mu.Unlock()
	if alive && l.g.fails() {
		return errors.New("no space left on device")
	}
	if alive {
		l.g.raise(decode[floor](text))
	}
	return nil
}

var _ member.Site = life{}

func encode(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

func decode[T any](text []byte) (v T) {
	if err := json.Unmarshal(text, &v); err != nil {
		panic(err)
	}
	return v
}
