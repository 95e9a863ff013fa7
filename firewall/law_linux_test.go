package firewall

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

// TestLaw makes the cases itself: each source address that a stranger may claim, by each way to a guarded port that
// this kernel has, with each kind of first packet and of packets that follow, in each state of guard and grants. One
// law holds for all of them:
//
// Nothing that a stranger sends is delivered to a socket behind a guarded port, and nothing leaves it towards the
// stranger.
//
// The test checks what sockets get and what the wire carries. With SALLYPORT_CASES=N it tries all states and
// backends, and one of N of the cases that differ little; with 1 it tries all of them, which takes hours.
// SALLYPORT_CASES_FILE names a file for the list of cases that break the law.
func TestLaw(t *testing.T) {
	lab.NeedNamespaces(t)
	r := newLawReport()
	plan := lawPlan{one: 10000}
	ks := kinds()[:2]
	if n, err := strconv.Atoi(os.Getenv("SALLYPORT_CASES")); err == nil && n > 0 {
		plan = lawPlan{one: n, whole: true}
		ks = kinds()
	}
	t.Run("worlds", func(t *testing.T) {
		for _, y := range lawWays() {
			for _, k := range ks {
				t.Run(y.name+"/"+k.name, func(t *testing.T) {
					t.Parallel()
					pinned(func() { lawWorld(t, y, k, plan, r) })
				})
			}
		}
	})
	r.report(t)
}

// lawPlan is how much is tried.
type lawPlan struct {
	whole bool // all states by all ways, with all backends
	one   int  // of the cases that differ little, one of so many
}

// lawWorld tries all cases of a way.
func lawWorld(t *testing.T, y *way, k kind, plan lawPlan, r *lawReport) {
	w := newWorld(t, y, k)
	if w.skipped != "" {
		r.skip(y.name, "this kernel lacks "+w.skipped)
		lab.KernelLacks(t, w.skipped)
	}
	for _, closed := range []Closed{Drop, Reject} {
		if closed == Reject && k.programs != "" {
			continue // iptables can only drop
		}
		for i := range lawStates {
			if s := &lawStates[i]; plan.whole || tried(y, k, closed, s) {
				w.inState(s, closed, plan.one, r)
			}
		}
		w.counter(closed, r)
	}
	for what := range w.lacks {
		r.skip("observation", what)
	}
}

// inState tries the cases of a state.
func (w *world) inState(s *lawState, closed Closed, one int, r *lawReport) {
	w.Helper()
	cases, left := makeCases(w.way, s, one)
	last := long
	if s.end == endExpiry {
		last = 2 * time.Second
	}
	for {
		if w.prepare(s, closed, last); !w.before(s, cases) {
			last *= 2
			continue
		}
		break
	}
	w.change(s)
	w.after(cases)
	w.settled()
	w.judge(s, closed, cases, left, r)
}

// prepare makes the guard and the grants that a state begins with.
func (w *world) prepare(s *lawState, closed Closed, last time.Duration) {
	w.Helper()
	w.restart(closed)
	for _, s := range w.allServers() {
		w.must(s.host.Do(func() error { return s.open(w) }))
	}
	w.flush() // packets still in flight
	w.see = newSight()
	w.halfOpen(func(k lawKey) { w.see.half[k] = true }) // left over from a closed server
	if s.loaded {
		w.load(0)
	}
	if s.granted {
		w.allow("client", long)
		w.allow("client's link-local", long)
	}
	if s.ex {
		w.allow("ex-client", last)
	}
}

// allow grants a client all services.
func (w *world) allow(name string, last time.Duration) {
	w.Helper()
	var gs []Grant
	now := time.Now()
	for _, six := range []bool{false, true} {
		source := w.clientAddr(name, six)
		if !six && source.IsLinkLocalUnicast() {
			continue // there is no such grant
		}
		for _, s := range lawServices {
			g := Grant{Client: "client", Service: fmt.Sprintf("%v-%d", s.proto, s.port), Source: source, Until: now.Add(last),
				Ports: []service.Ports{{Proto: s.proto, Low: s.port, High: s.port}, {Proto: s.proto, Low: s.front, High: s.front}}}
			gs = append(gs, g)
			for _, listed := range w.way.listed {
				if source.IsLinkLocalUnicast() {
					continue // it reaches no other machine
				}
				g.Service, g.To = g.Service+"-"+listed, []netip.Addr{addressOf(listed, six)}
				gs = append(gs, g)
			}
		}
	}
	w.must(w.Grant(w.Context(), gs, now))
}

// inOneGo is how many packets are sent before waiting for their effects.
const inOneGo = 200

// before sends the packets before the state's change. It returns false if a grant ended too soon.
func (w *world) before(s *lawState, cases []*lawCase) bool {
	w.Helper()
	if s.away {
		w.away()
	}
	w.steps(cases, false)
	if !s.ex || s.end != endExpiry {
		return true
	}
	return len(w.Grants(time.Now().Add(50*time.Millisecond))) > 0
}

func (w *world) after(cases []*lawCase) { w.Helper(); w.steps(cases, true) }

// steps sends the packets of all cases before or after the change, step by step over all cases.
func (w *world) steps(cases []*lawCase, after bool) {
	w.Helper()
	for i := range 8 {
		sent := 0
		for _, c := range cases {
			if i >= len(c.steps) || c.steps[i].after != after {
				continue
			}
			w.step(c, i)
			if sent++; sent%inOneGo == 0 {
				w.flush()
			}
		}
		if sent > 0 {
			w.flush()
		}
	}
}

func (w *world) step(c *lawCase, i int) {
	w.Helper()
	s := c.steps[i]
	me := netip.AddrPortFrom(c.addr, c.port)
	if s.shape == shapeServer {
		all := w.servers
		if c.proto == service.TCP {
			all = w.allServers() // the one that has the connection
		}
		for _, server := range all {
			if server.lawService == *c.lawService && server.six == c.six {
				server.speak(me)
			}
		}
		return
	}
	p := &packet{shape: s.shape, pack: s.pack, from: me, to: s.door.AddrPort, seq: lawSeq(c.port, i)}
	if s.back {
		p.from, p.to = p.to, p.from
	}
	if c.proto == service.UDP {
		p.seq = 0
	}
	if peer, ok := w.see.peer[familyIndex(c.six)][c.port]; ok && p.shape != shapeSYN {
		p.seq, p.ack = lawSeq(c.port, 0)+1, peer+1
	}
	w.must(w.outlets[s.outlet].send(p))
}

// change makes the state's change.
func (w *world) change(s *lawState) {
	w.Helper()
	if !s.changes() {
		return
	}
	switch {
	case !s.loaded, s.away:
		w.load(0)
	case s.end == endExpiry:
		w.waitForExpiry()
	default:
		gs, err := w.Revoke(w.Context(), Match{}, time.Now())
		w.must(err)
		if s.end == endCut {
			_, err = w.Cut(w.Context(), gs)
			w.must(err)
		}
	}
	w.flush()
	if s.forget {
		w.forget()
		w.flush() // until then a listener may repeat its SYN+ACK
	}
	was := newSight()
	was.peer = w.see.peer
	w.see = was
	for _, s := range w.allServers() {
		s.count.clear()
	}
	w.halfOpen(func(k lawKey) { w.see.half[k] = true })
}

// waitForExpiry waits until grants have ended in the kernel too: ipset counts in seconds.
func (w *world) waitForExpiry() {
	for len(w.Grants(time.Now())) > 0 {
		time.Sleep(10 * time.Millisecond)
	}
	if w.kind.programs != "" {
		time.Sleep(1200 * time.Millisecond)
		return
	}
	time.Sleep(50 * time.Millisecond)
}

// judge checks the signs of each case.
func (w *world) judge(s *lawState, closed Closed, cases []*lawCase, left int, r *lawReport) {
	w.Helper()
	w.halfOpen(func(k lawKey) {
		if !w.see.half[k] {
			w.see.add(k.six, service.TCP, k.port, signHalfOpen)
		}
	})
	for _, c := range cases {
		got := w.see.signs[familyIndex(c.six)][protoIndex(c.proto)][c.port]
		for _, server := range w.allServers() {
			guarded := server.host == w.gw || w.way.guardsBehind()
			if guarded && server.lawService == *c.lawService && server.six == c.six && server.count.take(c.port) > 0 {
				got |= signHeard
			}
		}
		if c.lives {
			if got == 0 && c.must && w.servers[0].count != nil {
				r.deadSessions(w, s, c)
			}
			continue
		}
		if got &^= c.may(s, closed); got == 0 {
			continue
		}
		if w.way.known != nil {
			if why := w.way.known(w.kind, s, c, got); why != "" {
				r.know(w.way.name, why)
				continue
			}
		}
		r.add(w, s, closed, c, got)
	}
	r.count(w.way.name, len(cases), left)
}

// may returns the signs that do not break the law.
func (c *lawCase) may(s *lawState, closed Closed) sign {
	var ok sign
	// So does an open port without a server, unless the packet is led elsewhere.
	if closed == Reject || c.isByOtherPort() {
		ok |= signReset | signICMP
	}
	if s.ex && !c.steps[0].after {
		ok |= signReset // it reports to the client that its session has ended
	}
	return ok
}

// broken is a group of cases that break the law in the same manner.
type broken struct {
	cases    int
	signs    sign
	where    map[string]bool     // backends, and ways of closing
	examples map[string][]string // by source and first packet
}

type lawReport struct {
	mu      sync.Mutex
	cases   int
	left    int
	bad     int
	byWay   map[string]int
	broken  map[string]*broken
	skipped map[string]string
	known   map[string]int
	dead    []string
	passes  int // things that must pass
}

func newLawReport() *lawReport {
	return &lawReport{broken: make(map[string]*broken), skipped: make(map[string]string), byWay: make(map[string]int),
		known: make(map[string]int)}
}

func (r *lawReport) know(way, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[way+": "+why]++
}

func (r *lawReport) skip(what, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped[what] = why
}

// passed records whether something that must pass did.
func (r *lawReport) passed(ok bool, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.passes++; !ok {
		r.dead = append(r.dead, what)
	}
}

func (r *lawReport) count(way string, n, left int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cases += n
	r.left += left
	r.byWay[way] += n
}

func (r *lawReport) deadSessions(w *world, s *lawState, c *lawCase) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dead = append(r.dead, fmt.Sprintf("%s, %s, %s: a session of %v that outlives its grant: %v", w.way.name,
		w.kind.name, s.name, c.lawService, c))
}

func (r *lawReport) add(w *world, s *lawState, closed Closed, c *lawCase, got sign) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bad++
	family := "IPv4"
	if c.six {
		family = "IPv6"
	}
	key := strings.Join([]string{w.way.name, s.name, family, c.proto.String()}, " | ")
	b := r.broken[key]
	if b == nil {
		b = &broken{where: make(map[string]bool), examples: make(map[string][]string)}
		r.broken[key] = b
	}
	b.cases++
	b.signs |= got
	b.where[w.kind.name+map[Closed]string{Drop: "", Reject: " rejecting"}[closed]] = true
	who := c.source
	if c.steps[0].back {
		who += " as whom a guarded port speaks to"
	}
	b.examples[who] = append(b.examples[who], c.String()+": "+got.String())
}

func (r *lawReport) report(t *testing.T) {
	t.Helper()
	var out strings.Builder
	fmt.Fprintf(&out, "%d cases, %d of which break the law; %d more with SALLYPORT_CASES=1; %d times what must pass "+
		"was tried\n", r.cases, r.bad, r.left, r.passes)
	for _, what := range slices.Sorted(maps.Keys(r.skipped)) {
		fmt.Fprintf(&out, "skipped: %s: %s\n", what, r.skipped[what])
	}
	for _, what := range slices.Sorted(maps.Keys(r.known)) {
		fmt.Fprintf(&out, "known: %6d %s\n", r.known[what], what)
	}
	for _, what := range slices.Sorted(maps.Keys(r.byWay)) {
		fmt.Fprintf(&out, "tried: %6d %s\n", r.byWay[what], what)
	}
	t.Log(out.String())
	for _, d := range r.dead {
		t.Errorf("this must pass but does not: %s", d)
	}
	for _, key := range slices.Sorted(maps.Keys(r.broken)) {
		b := r.broken[key]
		fmt.Fprintf(&out, "%s: %d cases (%v) with %s\n", key, b.cases, b.signs,
			strings.Join(slices.Sorted(maps.Keys(b.where)), ", "))
		first := ""
		for _, who := range slices.Sorted(maps.Keys(b.examples)) {
			e := b.examples[who]
			fmt.Fprintf(&out, "    %5d %s\n", len(e), e[0])
			first = e[0]
		}
		t.Errorf("%s: %d cases (%v), such as %s", key, b.cases, b.signs, first)
	}
	if name := os.Getenv("SALLYPORT_CASES_FILE"); name != "" {
		if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}
