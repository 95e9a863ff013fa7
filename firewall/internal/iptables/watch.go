package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"sallyport/firewall/internal/nl"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often to check for changes that the kernel does not report: of legacy tables, and of sets
	// while they hold anything.
	lookEvery = 500 * time.Millisecond
)

// Watch returns when another tool has changed the guard. The kernel also reports the helper's own changes; comparing
// the rules tells them apart.
func (b *Backend) Watch(ctx context.Context, deadline time.Time) error {
	for {
		late, err := b.listen(ctx, deadline)
		if err != nil {
			return err
		}
		if err := b.Helper.trouble(); err != nil {
			return err
		}
		changed, err := b.changed(late)
		if err != nil || changed {
			return err
		}
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return os.ErrDeadlineExceeded
		}
	}
}

// listen waits until something may have changed, the deadline has passed, or it is time for a check (late).
func (b *Backend) listen(ctx context.Context, deadline time.Time) (late bool, err error) {
	wake := deadline
	if next := time.Now().Add(b.pause()); b.looks() && (wake.IsZero() || next.Before(wake)) {
		wake = next
	}
	stop := b.wakeAtEnd()
	defer stop()
	if b.legacy != nil {
		return b.sleep(ctx, wake)
	}
	return b.hear(ctx, wake)
}

// pause returns how long to wait for the next check. A fresh load is checked soon, because another tool may have
// changed something at the same moment.
func (b *Backend) pause() time.Duration {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	if b.legacy != nil && b.fresh {
		return lookEvery / 10
	}
	return lookEvery
}

// looks reports whether something may change without a report.
func (b *Backend) looks() bool {
	return b.legacy != nil || time.Now().Before(b.lasting())
}

// wakeAtEnd makes listen return when the helper has ended.
func (b *Backend) wakeAtEnd() (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-b.Helper.Ended:
			b.poke()
		case <-over:
		}
	}()
	return func() { close(over) }
}

// sleep waits where the kernel reports no changes.
func (b *Backend) sleep(ctx context.Context, wake time.Time) (late bool, err error) {
	t := time.NewTimer(time.Until(wake))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-b.poked:
		return false, nil
	case <-t.C:
		return true, nil
	}
}

// hear waits for a change of the tables that contain our chains.
func (b *Backend) hear(ctx context.Context, wake time.Time) (late bool, err error) {
	if err := b.events.SetReadDeadline(wake); err != nil {
		return false, fmt.Errorf("watching the rules: %w", err)
	}
	select {
	case <-b.poked: // before the deadline was set
		return false, nil
	default:
	}
	err = nl.Await(ctx, b.events, b.inOurTables)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return true, nil
	}
	return false, err
}

// inOurTables reports whether a message of nf_tables is about an iptables table that contains our chains.
func (b *Backend) inOurTables(m netlink.Message) bool {
	family, name := nl.Table(m)
	if name == natTable && !b.leads.Load() {
		return false
	}
	if family != unix.NFPROTO_IPV4 && family != unix.NFPROTO_IPV6 {
		return false
	}
	return slices.ContainsFunc(slices.Collect(ourTables), func(t string) bool { return t == name })
}

func ourTables(yield func(string) bool) {
	for _, t := range Tables() {
		if !yield(t.name) {
			return
		}
	}
}

// changed reports whether the guard is not what was loaded. If the kernel reported no change (late), legacy tables
// are compared before a program is run to inspect them.
func (b *Backend) changed(late bool) (bool, error) {
	b.Mu.Lock()
	defer b.Mu.Unlock()
	if !b.loaded {
		return false, nil
	}
	if time.Now().Before(b.lasting()) {
		if emptied, err := b.emptied(); err != nil || emptied {
			return true, nil // Load will report the problem
		}
	}
	if b.legacy == nil {
		if late {
			return false, nil
		}
		return b.differs()
	}
	b.fresh = false
	sum, err := b.legacy.Sum(b.leads.Load())
	if err != nil || sum == b.legacy.good {
		return false, err
	}
	differs, err := b.differs()
	if err == nil && !differs {
		b.legacy.good = sum // the sum from before the program ran, so that a later change is noticed
	}
	return differs, err
}

// differs runs a program to check whether the rules are those that were loaded. If that fails, it reports a
// difference: loading them again reports the problem.
func (b *Backend) differs() (bool, error) {
	answer, err := b.Helper.Ask(Request{Op: OpLook})
	if err != nil {
		return true, b.Helper.trouble()
	}
	return answer.Found.Digest != b.digest, nil
}
