package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"
)

const (
	stormFor = time.Minute      // after it, no further knock begins under this noise
	peersFor = 30 * time.Second // for other programs
	settling = 200 * ms         // after the start of the noise
	aloneFor = 500 * ms         // without knocks, to watch the server
	stagger  = 100 * ms         // between two knocks that do not wait for each other
)

// storm is what happened under noise.
type storm struct {
	tried int
	took  times   // of those that opened
	rate  float64 // of the noise, per second

	cpu, wakeUps float64 // of the server while nobody knocked: cores, and times per second
	memory       uint64  // of the server at the end
	drops        uint64  // packets that it could not read in time
}

func (s storm) lost() float64 { return 100 * float64(s.tried-len(s.took)) / float64(max(1, s.tried)) }

// noise measures knocks under each kind of noise, at each rate, in turn for each program.
func (b *bench) noise() error {
	plot := b.results.plot(&chart{file: "noise.png", title: "Knocks that never open, under noise",
		x: "packets per second", y: "lost, %", logX: true})
	for _, rate := range b.rates {
		worst := make(map[string]storm)
		for _, kind := range kinds {
			for _, f := range b.among(knockdName, fwknopName, ours, gateless, byXDP, browsers) {
				s, err := b.storm(f, kind, rate)
				if err != nil {
					return fmt.Errorf("%s under %s: %w", f.name(), kind, err)
				}
				if s.tried == 0 {
					continue
				}
				b.tell(f.name(), kind, rate, s)
				if w, ok := worst[f.name()]; !ok || s.lost() > w.lost() {
					worst[f.name()] = s
				}
			}
		}
		for _, f := range b.fields {
			if s, ok := worst[f.name()]; ok {
				plot.add(f.name(), s.rate, s.lost())
			}
		}
	}
	return nil
}

func (b *bench) tell(name, kind string, rate int, s storm) {
	speed := fmt.Sprintf("%d/s", rate)
	if rate == 0 {
		speed = "full speed"
	}
	what := kind + ", " + speed
	b.say("%s: %s: %d of %d open", what, name, len(s.took), s.tried)
	b.results.put(what+": knocks that open; p50 / p90 / p99, ms", name, s.took.of(s.tried))
	cell := fmt.Sprintf("%.0f; %.1f %%, %.0f; %s", s.rate, 100*s.cpu, s.wakeUps, megabytes(s.memory))
	if strings.HasPrefix(name, ours) {
		cell += fmt.Sprintf("; %d", s.drops)
	}
	b.results.put(what+": packets/s; server without knocks: CPU, wake-ups/s; its memory; packets it missed", name, cell)
}

// storm sends noise and knocks meanwhile. Its zero value means that the program takes no such noise.
func (b *bench) storm(f *field, kind string, rate int) (storm, error) {
	load, err := f.program.(noiser).noise(kind)
	if err != nil || load == nil {
		return storm{}, err
	}
	if err := f.shut(); err != nil {
		return storm{}, err
	}
	noise := f.net.blast(load, rate)
	s, err := b.under(f, rate)
	pps, failed := noise.end()
	s.rate = pps
	return s, errors.Join(err, failed)
}

// under watches the server while only noise arrives, and then knocks.
func (b *bench) under(f *field, rate int) (s storm, err error) {
	dropped, err := f.drops()
	if err != nil {
		return storm{}, err
	}
	if s.cpu, s.wakeUps, err = b.alone(f); err != nil {
		return storm{}, err
	}
	switch f.program.(type) {
	case *fwknop:
		s.tried, s.took, err = b.abreast(f, b.peer)
	case *knockd:
		s.tried, s.took, err = b.oneByOne(f, b.peer, peersFor)
	default:
		n := b.knocks
		if rate == 0 {
			n = b.most
		}
		s.tried, s.took, err = b.oneByOne(f, n, stormFor)
	}
	if err != nil {
		return storm{}, err
	}
	after, err := f.use()
	if err != nil {
		return storm{}, err
	}
	now, err := f.drops()
	s.memory, s.drops = after.memory, now-dropped
	return s, err
}

// alone returns the share of a core that the server takes while nobody knocks, and its wake-ups per second.
func (b *bench) alone(f *field) (cpu, wakeUps float64, err error) {
	if err := b.wait(settling); err != nil {
		return 0, 0, err
	}
	before, err := f.use()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	if err := b.wait(aloneFor); err != nil {
		return 0, 0, err
	}
	after, err := f.use()
	used, seconds := after.since(before), time.Since(begun).Seconds()
	return used.cpu.Seconds() / seconds, float64(used.wakeUps) / seconds, err
}

// drops returns how many packets the kernel dropped before the server read them, if the server counts them.
func (f *field) drops() (uint64, error) {
	s, counts := f.program.(*sallyport)
	if !counts {
		return 0, nil
	}
	c, err := s.counters()
	return c.Capture.Drops, err
}

// oneByOne knocks n times, each for an address for which the port is shut. It ends early when the time is over.
func (b *bench) oneByOne(f *field, n int, within time.Duration) (tried int, took times, err error) {
	var addrs addresses
	for begun := time.Now(); tried < n && time.Since(begun) < within; {
		from := clientAddr
		if _, own := f.program.(*knockd); own {
			err = f.shutFor(from)
		} else {
			from, err = addrs.next(b.wait)
		}
		if err := errors.Join(err, b.ctx.Err()); err != nil {
			return 0, nil, err
		}
		tried++
		d, err := f.openFor(from)
		if err != nil && !errors.Is(err, errNotOpen) {
			return 0, nil, err
		}
		if err == nil {
			took = append(took, d)
		}
	}
	return tried, took, nil
}

// abreast begins a knock every stagger, whether the earlier ones have opened or not.
func (b *bench) abreast(f *field, n int) (tried int, took times, err error) {
	var addrs addresses
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range n {
		from, err := addrs.next(b.wait)
		if err != nil {
			errs = append(errs, err)
			break
		}
		wg.Go(func() {
			d, err := f.openFor(from)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				took = append(took, d)
			} else if !errors.Is(err, errNotOpen) {
				errs = append(errs, err)
			}
		})
		if err := b.wait(stagger); err != nil {
			break
		}
	}
	wg.Wait()
	return n, took, errors.Join(append(errs, b.ctx.Err())...)
}

// addresses are those of the pool, in turn. Grants of Sallyport's for them last a second.
type addresses struct {
	used [254]time.Time
	turn int
}

// reuseAfter is longer than a grant for an address of the pool.
const reuseAfter = 1500 * ms

func (a *addresses) next(wait func(time.Duration) error) (netip.Addr, error) {
	i := a.turn % len(a.used)
	a.turn++
	err := wait(time.Until(a.used[i].Add(reuseAfter)))
	a.used[i] = time.Now()
	addr := poolAddr.As4()
	addr[3] += byte(i)
	return netip.AddrFrom4(addr), err
}
