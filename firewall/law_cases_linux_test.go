package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sallyport/keys/service"
)

// door is an address and port that lead to a guarded service.
type door struct {
	name string // of the address
	netip.AddrPort
}

// step is one packet of a case.
type step struct {
	shape
	pack
	back   bool // it claims to come from the door
	door   door
	outlet int
	after  bool // sent after the state's change
}

// lawCase is what a stranger does, from one address and port, to one guarded service.
type lawCase struct {
	*lawService
	six    bool
	source string
	addr   netip.Addr
	port   uint16
	steps  []step
	lives  bool // an admitted session, where sessions outlive grants: it may continue
	must   bool // and must
}

func (c *lawCase) String() string {
	var steps []string
	for _, s := range c.steps {
		steps = append(steps, s.String())
	}
	return fmt.Sprintf("%s: %s", c.source, strings.Join(steps, ", then "))
}

func (s *step) String() string {
	arrow := "to "
	if s.back {
		arrow = "from "
	}
	text := s.shape.String()
	if s.shape != shapeServer {
		text += " " + arrow + s.door.name + map[bool]string{true: " (again)"}[false]
	}
	if s.pack != packPlain {
		text += " " + s.pack.String()
	}
	if s.outlet > 0 {
		text += " by the other link"
	}
	if s.after {
		text = "[after] " + text
	}
	return text
}

// lawState is what happens between a stranger's first packets and those that follow.
type lawState struct {
	name    string
	loaded  bool // the guard is there at first
	away    bool // another tool removes it in between, and it comes back
	granted bool // another client has a live grant
	ex      bool // the stranger has a grant at first, which ends:
	end     ending
	forget  bool // connection tracking forgets the stranger's flows
	rank    int  // whether a short run includes it: see plan
}

type ending uint8

const (
	endNone ending = iota
	endExpiry
	endRevoked
	endCut
)

var lawStates = []lawState{
	{name: "guarded", loaded: true, rank: 3},
	{name: "another's grant lives", loaded: true, granted: true, rank: 1},
	{name: "before the first start", rank: 1},
	{name: "guard away and back", loaded: true, away: true, rank: 3},
	{name: "grant expired", loaded: true, ex: true, end: endExpiry},
	{name: "grant revoked", loaded: true, ex: true, end: endRevoked, rank: 1},
	{name: "sessions cut", loaded: true, ex: true, end: endCut, rank: 2},
	{name: "grant expired and flow forgotten", loaded: true, ex: true, end: endExpiry, forget: true},
	{name: "grant revoked and flow forgotten", loaded: true, ex: true, end: endRevoked, forget: true, rank: 1},
	{name: "sessions cut and flow forgotten", loaded: true, ex: true, end: endCut, forget: true, rank: 1},
}

// tried reports whether a short run tries a way in a state: the most different states by all ways, the others by the
// main ways, and slow ones by one way.
func tried(y *way, k kind, closed Closed, s *lawState) bool {
	least := 3
	switch {
	case closed == Reject, k.programs != "" && !y.main:
	case y.main && k.programs == "":
		least = 1
	case k.programs == "" || y.main:
		least = 2
	}
	if y.name == "delivered" && closed == Drop && k.programs == "" {
		least = 0
	}
	return s.rank >= least && (k.programs == "" || y.main || s.name == "guarded")
}

// changes reports whether something happens between packets.
func (s *lawState) changes() bool { return !s.loaded || s.away || s.ex }

// otherPort ends the name of a door that is not a guarded port, publishedPort that of one that leads to the machine
// behind.
const otherPort, publishedPort = ", other port", ", published port"

// maker makes the cases of a world in a state.
type maker struct {
	way   *way
	state *lawState
	one   int // one of so many seldom cases is made
	six   bool
	next  [2]uint16 // the port of the next case, by protocol
	cases []*lawCase
	left  int // cases that only a longer run makes
	made  uint32
}

func makeCases(y *way, s *lawState, one int) ([]*lawCase, int) {
	var all []*lawCase
	left := 0
	for _, six := range []bool{false, true} {
		if y.only4 && six || y.only6 && !six {
			continue
		}
		m := &maker{way: y, state: s, one: one, six: six, next: [2]uint16{firstCase, firstCase}}
		for i := range lawServices {
			m.service(&lawServices[i])
		}
		all = append(all, m.cases...)
		left += m.left
	}
	return all, left
}

func (m *maker) service(s *lawService) {
	if m.state.ex {
		m.exClient(s)
		return
	}
	for _, source := range m.sources() {
		m.single(s, source)
		m.reply(s, source)
		m.again(s, source)
	}
	m.spoken(s)
}

// sources are the addresses from which a stranger may claim to send.
func (m *maker) sources() []string {
	all := []string{"stranger", "gateway", "gateway's other", "gateway, link-local", "loopback", "behind", "link-local",
		"multicast", "broadcast", "none", "mapped", "mapped client"}
	if m.state.granted && m.six {
		all = append(all, "client's link-local") // the client is on another link
	}
	return slices.DeleteFunc(all, func(name string) bool { return !addressOf(name, m.six).IsValid() })
}

// telling reports whether a short run has cases of a source: all sources by the main ways, and by the others those
// that have broken guards.
func (m *maker) telling(source string) bool {
	return m.way.main || slices.Contains([]string{"stranger", "gateway", "link-local", "behind"}, source)
}

// doors returns the ways in to a service that the way has, and speakers, the addresses that may be claimed as sender.
func (m *maker) doors(s *lawService) (doors, speakers []door) {
	add := func(all *[]door, name string, port uint16, suffix string) {
		if a := addressOf(name, m.six); a.IsValid() {
			*all = append(*all, door{name + suffix, netip.AddrPortFrom(a, port)})
		}
	}
	for _, name := range append([]string{"gateway"}, m.way.to...) {
		add(&doors, name, s.port, "")
	}
	if m.way.aliases {
		add(&doors, "gateway", s.alias, otherPort)
	}
	if m.way.fronts {
		add(&doors, "gateway", s.front, publishedPort)
	}
	for _, d := range doors {
		if a := d.Addr(); !a.IsMulticast() && d.name != "broadcast" && d.name != "all ones" {
			speakers = append(speakers, d)
		}
	}
	if (m.way.aliases || m.way.fronts) && !slices.Contains(m.way.to, "behind") {
		add(&speakers, "behind", s.port, "")
	}
	return doors, speakers
}

func shapesOf(s *lawService) []shape {
	if s.proto == service.UDP {
		return []shape{shapeUDP}
	}
	return []shape{shapeSYN, shapeACK, shapeData, shapeSYNACK, shapeRST, shapeFIN, shapeNull}
}

// followUps are the packets that an attacker sends in an existing flow.
func followUps(s *lawService) []shape {
	if s.proto == service.UDP {
		return []shape{shapeUDP}
	}
	return []shape{shapeSYN, shapeData, shapeACK, shapeFIN, shapeRST}
}

func (m *maker) outlets() int {
	if m.way.bridged && len(m.way.listed) == 0 {
		return 2
	}
	return 1
}

// single is one packet to a guarded port.
func (m *maker) single(s *lawService, source string) {
	if m.state.changes() {
		return // nothing could be different
	}
	doors, _ := m.doors(s)
	for _, d := range doors {
		for _, sh := range shapesOf(s) {
			for _, p := range packs(m.six) {
				seldom := p != packPlain && source != "stranger" || sh > shapeData && sh != shapeUDP || !m.telling(source)
				m.add(s, source, seldom, step{shape: sh, pack: p, door: d})
			}
		}
		for _, sh := range []shape{shapeUnreachable, shapeTooBig} {
			for _, p := range []pack{packPlain, packOptions, packHalves} {
				m.add(s, source, source != "stranger", step{shape: sh, pack: p, door: d})
			}
		}
	}
}

// reply is a packet that claims to come from a guarded port, and one that thereby counts as its reply.
func (m *maker) reply(s *lawService, source string) {
	doors, speakers := m.doors(s)
	for _, from := range speakers {
		open := from.name == "behind" && !slices.Contains(m.way.listed, "behind") || strings.HasSuffix(from.name, otherPort)
		if open && source != "stranger" && source != "link-local" {
			continue // the host itself may answer on behalf of an unguarded address
		}
		for _, to := range doors {
			for _, sh := range shapesOf(s) {
				for _, p := range packs(m.six) {
					for out := range m.outlets() {
						m.replies(s, source, from, to, step{shape: sh, pack: p, back: true, door: from, outlet: out})
					}
				}
			}
		}
	}
}

func (m *maker) replies(s *lawService, source string, from, to door, first step) {
	for _, sh := range followUps(s) {
		for _, p := range packs(m.six) {
			if p != packPlain && (first.pack != packPlain || sh != shapeSYN && sh != shapeUDP) {
				continue
			}
			common := p == packPlain && first.pack == packPlain &&
				(first.shape == shapeSYN || first.shape == shapeACK || first.shape == shapeUDP) &&
				(sh == shapeSYN || sh == shapeData || sh == shapeUDP) && (from == to || m.way.aliases || m.way.fronts)
			m.add(s, source, !common || !m.telling(source), first, step{shape: sh, pack: p, door: to, after: m.state.changes()})
		}
	}
}

// again is two packets to a guarded port, of which the first may be let in if there is no guard.
func (m *maker) again(s *lawService, source string) {
	doors, _ := m.doors(s)
	for _, d := range doors {
		for _, sh := range append(shapesOf(s), shapeUnreachable) {
			for _, next := range append(followUps(s), shapeUnreachable) {
				common := m.state.changes() && (sh == shapeSYN || sh == shapeUDP || sh == shapeACK) && source == "stranger"
				m.add(s, source, !common, step{shape: sh, door: d}, step{shape: next, door: d, after: m.state.changes()})
			}
		}
		if s.proto == service.TCP && m.state.away && source == "stranger" {
			m.session(s, d, source)
		}
	}
}

// session is a whole connection, and what may be sent in it later.
func (m *maker) session(s *lawService, d door, source string) {
	for _, next := range followUps(s) {
		for _, p := range packs(m.six) {
			m.add(s, source, p != packPlain, step{shape: shapeSYN, door: d}, step{shape: shapeACK, door: d},
				step{shape: next, pack: p, door: d, after: true})
		}
	}
	m.add(s, source, false, step{shape: shapeSYN, door: d}, step{shape: shapeACK, door: d},
		step{shape: shapeServer, door: d, after: true}, step{shape: shapeData, door: d, after: true})
}

// spoken is a server that sends to a stranger while the guard is away.
func (m *maker) spoken(s *lawService) {
	if s.proto != service.UDP || !m.state.away {
		return
	}
	doors, _ := m.doors(s)
	m.add(s, "stranger", false, step{shape: shapeServer, door: doors[0]},
		step{shape: shapeUDP, door: doors[0], after: true})
	m.add(s, "stranger", false, step{shape: shapeUDP, door: doors[0]}, step{shape: shapeServer, door: doors[0]},
		step{shape: shapeServer, door: doors[0], after: true}, step{shape: shapeUDP, door: doors[0], after: true})
}

// exClient is what a client can do after its grant has ended.
func (m *maker) exClient(s *lawService) {
	doors, speakers := m.doors(s)
	const source = "ex-client"
	for _, d := range doors {
		if !slices.Contains(speakers, d) || d.name == "loopback" {
			continue
		}
		if s.proto == service.TCP {
			m.session(s, d, source)
			m.add(s, source, false, step{shape: shapeSYN, door: d}, step{shape: shapeACK, door: d, after: true})
		} else {
			m.datagrams(s, d, source)
		}
		for _, sh := range shapesOf(s) {
			for _, p := range packs(m.six) {
				m.add(s, source, p != packPlain, step{shape: sh, pack: p, door: d, after: true})
			}
		}
	}
}

func (m *maker) datagrams(s *lawService, d door, source string) {
	says := step{shape: shapeUDP, door: d}
	server := step{shape: shapeServer, door: d}
	later := func(s step) step { s.after = true; return s }
	for _, p := range packs(m.six) {
		next := later(says)
		next.pack = p
		m.add(s, source, p != packPlain, says, next)
		m.add(s, source, p != packPlain, says, later(server), next)
	}
	m.add(s, source, false, says, server, later(says))
	m.add(s, source, false, says, server, later(server), later(says), later(server))
	m.add(s, source, false, server, later(says))
	m.add(s, source, false, server, later(server), later(says), later(server), later(says))
}

// isByOtherPort reports whether a case is about an open port that leads to a guarded one.
func (c *lawCase) isByOtherPort() bool {
	return slices.ContainsFunc(c.steps, func(s step) bool { return strings.HasSuffix(s.door.name, otherPort) })
}

// serverBegins reports whether the server sends to a peer that, as far as connection tracking knows, has not sent
// anything: that is a flow of the host's own.
func (c *lawCase) serverBegins() bool {
	return slices.ContainsFunc(c.steps, func(s step) bool { return s.shape == shapeServer && s.after })
}

// add makes a case; of those that seldom find anything new, it makes one of some.
func (m *maker) add(s *lawService, source string, seldom bool, steps ...step) {
	if m.way.bridged && len(m.way.listed) > 0 {
		for i := range steps {
			if steps[i].door.name == "behind" {
				steps[i].outlet = 1 // the gateway sees it pass
			}
		}
	}
	if m.six && source == "loopback" && steps[0].door.name == "loopback" && !steps[0].back {
		seldom = true
	}
	// A multiplicative hash, so that the cases that are made differ in every respect.
	if m.made++; seldom && m.one > 1 && (m.made*2654435761)>>8%uint32(m.one) != 0 {
		m.left++
		return
	}
	p := protoIndex(s.proto)
	if m.next[p] >= lastCase {
		m.left++
		return
	}
	c := &lawCase{lawService: s, six: m.six, source: source, addr: addressOf(source, m.six),
		steps: slices.Clone(steps), port: m.next[p]}
	m.next[p]++
	c.lives, c.must = m.lives(c)
	m.cases = append(m.cases, c)
}

// lives reports whether a case is the session of a grant, and whether it must continue after the grant. A session of
// datagrams exists once the server has answered.
func (m *maker) lives(c *lawCase) (may, must bool) {
	if !m.state.ex || m.state.end == endCut || m.state.forget || c.cut || c.steps[0].after {
		return false, false
	}
	last := c.steps[len(c.steps)-1]
	if strings.HasSuffix(last.door.name, otherPort) {
		return !m.way.transparent, false // the grant is for the port that it leads to; what is handed over has none
	}
	if c.proto == service.UDP {
		return true, last.pack == packPlain && c.steps[0].shape == shapeUDP && c.steps[1].shape == shapeServer &&
			!c.steps[1].after && last.shape == shapeUDP && last.door.name == "gateway"
	}
	if last.shape == shapeSYN {
		return false, false
	}
	return true, len(c.steps) > 2 && last.pack == packPlain && last.door.name != "gateway, anycast"
}
