// Package metrics is the page that Prometheus reads: what the gateway counted, and how long it took.
//
// If the page is off, nothing of this package runs. If it is on, a used packet costs a few atomic additions (see
// [Page.Decided]). Other packets cost nothing here, because the audit log has counted them already. All other values
// come from a [Sample], taken when the page is read.
//
// The page has its own registry, no client names unless configured, and no secrets.
package metrics

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"sallyport/spa/audit"
	"sallyport/spa/server/control"
)

// Sample is what the server knows when the page is read.
type Sample struct {
	Packets  []audit.Count // by verdict and reason; zero if there were none yet
	Capture  Capture
	Gate     Gate
	Live     int      // grants
	Grants   []string // the client of each; only if clients are counted
	Clients  []string // with a file
	LeftOut  int      // client files that are ignored
	Floor    time.Duration
	Journal  Journal
	Guard    Guard
	Lost     uint64 // lines of the audit log
	LogMoved bool   // the audit log continues in a file that was moved away

	Actions *control.Actions // nil: no service runs a program

	Recovery Recovery

	Fleet *control.Fleet // nil: the gateway is in none
}

// Recovery counts recovery keys, and what they were used for.
type Recovery struct {
	Keys, Spent   int    // those with a file; of them, those without uses left
	Used, Refused uint64 // uses of all time, and refusals since the start
}

// Capture counts packets before any decision.
type Capture struct {
	Received, Passed, Framed, Dropped uint64
	Ignored                           map[string]uint64 // by reason
}

// Gate is the gate in the kernel.
type Gate struct {
	Kernel  bool              // it is there
	Dropped map[string]uint64 // packets, by reason
}

// Journal is the replay memory.
type Journal struct {
	Live, Records, Room int
	Damaged             bool   // when the server started
	Faults              uint64 // packets refused because it could not be used
}

// Guard is the state of the guard.
type Guard struct {
	InPlace, Kept bool
	PutBack       uint64
}

// Page counts what happens on the line, and writes the page.
type Page struct {
	listener net.Listener
	closer   io.Closer // of the listener
	log      *slog.Logger
	registry *prometheus.Registry
	sample   func() Sample
	version  string
	start    time.Time

	decided  [audit.Closed + 1]prometheus.Observer // by verdict; nil: packets that are not used
	kernel   prometheus.Observer
	ahead    prometheus.Observer // of the clocks
	behind   prometheus.Observer
	byClient *byClient // nil: clients are not counted

	making sync.Mutex // one page at a time
}

// Options say what is on the page.
type Options struct {
	Version string
	Start   time.Time
	Clients bool          // count by client
	Sample  func() Sample // called for each reading, not from the line's goroutine
	Log     *slog.Logger
}

// Latencies, from 10 µs to 2.6 s: the line takes 100 µs, iptables takes milliseconds.
var (
	latencies = prometheus.ExponentialBuckets(10e-6, 2, 19)
	offsets   = []float64{0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600}
)

// newPage returns a page that listens nowhere.
func newPage(o Options) *Page {
	version, _, _ := strings.Cut(o.Version, " ") // the rest is about the machine
	p := &Page{log: o.Log, registry: prometheus.NewRegistry(), sample: o.Sample, version: version, start: o.Start}
	decided := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "spa_decision_duration_seconds", Buckets: latencies,
		Help: "Time from reading a used packet to its decision, with its grant in the kernel, by verdict.",
	}, []string{"verdict"})
	kernel := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "spa_firewall_duration_seconds", Buckets: latencies,
		Help: "Time that the firewall took for one change of grants: one call of the kernel, or one run of ipset.",
	})
	clocks := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "spa_client_clock_offset_seconds", Buckets: offsets,
		Help: "How far clients' clocks were off when they knocked, by direction. Stale packets are not counted.",
	}, []string{"direction"})
	for v := range audit.Closed + 1 {
		if v.Spent() {
			p.decided[v] = decided.WithLabelValues(v.String())
		}
	}
	p.kernel, p.ahead, p.behind = kernel, clocks.WithLabelValues("ahead"), clocks.WithLabelValues("behind")
	if o.Clients {
		p.byClient = &byClient{of: make(map[string]*tally)}
	}
	p.registry.MustRegister(decided, kernel, clocks, collector{p})
	return p
}

// Decided counts the event of a used packet, which took this long to decide.
func (p *Page) Decided(e audit.Event, took time.Duration) {
	p.decided[e.Verdict].Observe(took.Seconds())
	if off := e.Knock.Time.Sub(e.Time).Seconds(); off >= 0 {
		p.ahead.Observe(off)
	} else {
		p.behind.Observe(-off)
	}
	if p.byClient != nil {
		p.byClient.add(e.Client, e.Verdict)
	}
}

// Changed counts a change of the firewall that took this long.
func (p *Page) Changed(took time.Duration) { p.kernel.Observe(took.Seconds()) }

// text returns the page.
func (p *Page) text() ([]byte, error) {
	p.making.Lock()
	defer p.making.Unlock()
	families, err := p.registry.Gather()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	e := expfmt.NewEncoder(&b, format)
	for _, family := range families {
		if err := e.Encode(family); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

var format = expfmt.NewFormat(expfmt.TypeTextPlain)

// tally counts the packets of one client by verdict.
type tally [audit.Closed + 1]uint64

// byClient counts by client. report limits it to clients with a file.
type byClient struct {
	mu sync.Mutex
	of map[string]*tally
}

func (c *byClient) add(client string, v audit.Verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.of[client]
	if !ok {
		t = new(tally)
		c.of[client] = t
	}
	t[v]++
}

// report calls each with each count of a client that has a file, and forgets other clients. The list is sorted.
func (c *byClient) report(clients []string, each func(client string, v audit.Verdict, n uint64)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for client, t := range c.of {
		if _, ok := slices.BinarySearch(clients, client); !ok {
			delete(c.of, client)
			continue
		}
		for v, n := range t {
			if v := audit.Verdict(v); v.Spent() {
				each(client, v, n)
			}
		}
	}
}
