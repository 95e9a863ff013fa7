package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"sallyport/spa/lab"
)

// wait lets time pass.
func (b *bench) wait(d time.Duration) error {
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// idle counts how often the servers wake up while nobody knocks.
func (b *bench) idle() error {
	if err := b.wait(time.Second); err != nil { // what they do at their start is over
		return err
	}
	before := make([]usage, len(b.fields))
	for i, f := range b.fields {
		var err error
		if before[i], err = f.use(); err != nil {
			return err
		}
	}
	if err := b.wait(b.sizes.idle); err != nil {
		return err
	}
	for i, f := range b.fields {
		u, err := f.use()
		if err != nil {
			return err
		}
		if f.name() == nothing {
			continue
		}
		used := u.since(before[i])
		b.results.put(fmt.Sprintf("idle for %v: wake-ups per second, memory", b.sizes.idle), f.name(),
			fmt.Sprintf("%.1f, %s", float64(used.wakeUps)/b.sizes.idle.Seconds(), megabytes(used.memory)))
	}
	return nil
}

// opens measures knocks one at a time, in rounds.
func (b *bench) opens() error {
	fields := b.among(nothing, knockdName, fwknopName, ours, byTables)
	took := make([]times, len(fields))
	for round := range b.sizes.opens + 1 { // the first only warms up
		for i, f := range fields {
			if err := errors.Join(b.ctx.Err(), f.shutFor(clientAddr)); err != nil {
				return fmt.Errorf("%s: %w", f.name(), err)
			}
			d, err := f.openFor(clientAddr)
			switch {
			case errors.Is(err, errNotOpen):
				b.say("%s: %v", f.name(), err)
			case err != nil:
				return fmt.Errorf("%s: %w", f.name(), err)
			case round > 0:
				took[i] = append(took[i], d)
			}
		}
	}
	for i, f := range fields {
		b.results.put("start of the client until tcp/22 accepts: knocks that open; p50 / p90 / p99, ms", f.name(),
			took[i].of(b.sizes.opens))
	}
	return nil
}

// connects measures the time to the first byte of the service, over networks with a delay.
func (b *bench) connects() error {
	plot := b.results.plot(&chart{file: "connect.png", title: "From the start of the client to the service's first byte",
		x: "round trip, ms", y: "p50, ms"})
	for _, delay := range b.delays {
		if err := b.connectOver(delay, plot); err != nil {
			return err
		}
	}
	return nil
}

// connectOver starts the programs in networks with a delay, and measures them in rounds.
func (b *bench) connectOver(delay time.Duration, plot *chart) (err error) {
	var fields []*field
	defer func() {
		for _, f := range fields {
			err = errors.Join(err, f.stop(), f.net.close())
		}
	}()
	for _, p := range b.basics() {
		f, _, err := b.begin(p, delay)
		if err != nil {
			return err
		}
		fields = append(fields, f)
	}
	took := make([]times, len(fields))
	for round := range b.sizes.connects + 1 { // the first only warms up
		for i, f := range fields {
			d, err := f.firstByteAgain(b.ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name(), err)
			}
			if round > 0 {
				took[i] = append(took[i], d)
			}
		}
	}
	for i, f := range fields {
		b.results.put(fmt.Sprintf("connect with %v each way, to the first echoed byte: p50 / p90 / p99 of %d, ms", delay,
			b.sizes.connects), f.name(), took[i].String())
		plot.add(f.name(), 2*delay.Seconds()*1000, took[i].at(0.5).Seconds()*1000)
	}
	return nil
}

// firstByteAgain closes the port and then measures.
func (f *field) firstByteAgain(ctx context.Context) (time.Duration, error) {
	if err := errors.Join(ctx.Err(), f.shut()); err != nil {
		return 0, err
	}
	return f.firstByte()
}

// firstByte returns the time from the start of the client until a byte came back from the service.
func (f *field) firstByte() (time.Duration, error) {
	if s, ok := f.program.(*sallyport); ok {
		return s.connect()
	}
	begun := time.Now()
	if err := f.send(clientAddr); err != nil {
		return 0, err
	}
	conn, err := lab.Dial(f.net.client, clientAddr.String(), guarded.String(), knockWithin)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	err = lab.Echoes(conn, "x", knockWithin)
	return time.Since(begun), err
}

// connect runs spa-client connect. It returns the time until a byte came back, and then ends the connection.
func (s *sallyport) connect() (time.Duration, error) {
	cmd := s.client(0, "connect", "ssh", "--host", "gw")
	var stderr lab.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := s.net.client.Start(cmd); err != nil {
		return 0, err
	}
	defer func() {
		in.Close()
		_ = cmd.Wait() // it was connected, or its error is below
	}()
	if _, err := io.WriteString(in, "x"); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return 0, fmt.Errorf("spa-client connect: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return time.Since(begun), nil
}
