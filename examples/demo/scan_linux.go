package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"sallyport/examples/internal/stage"
	"sallyport/spa/lab"
)

const (
	scanTo    = 1024 // the last port of a scan, which starts at 1
	scanAtOne = 32   // concurrent connections of a scan
	askAgain  = 200 * time.Millisecond
)

// sight is what a scan found: the TCP ports that accepted a connection, and those that did not answer.
type sight struct{ open, silent []int }

// scan connects to each TCP port of the gateway from 1 to scanTo, and waits this long for an answer.
func scan(from *lab.Host, wait time.Duration) (sight, error) {
	var seen sight
	var errs []error
	var mu sync.Mutex
	var scanners sync.WaitGroup
	ports := make(chan int)
	for range scanAtOne {
		scanners.Go(func() {
			for port := range ports {
				conn, err := lab.Dial(from, "", net.JoinHostPort(gateway4, strconv.Itoa(port)), wait)
				mu.Lock()
				errs = append(errs, seen.note(port, err))
				mu.Unlock()
				if conn != nil {
					conn.Close()
				}
			}
		})
	}
	for port := 1; port <= scanTo; port++ {
		ports <- port
	}
	close(ports)
	scanners.Wait()
	slices.Sort(seen.open)
	slices.Sort(seen.silent)
	return seen, errors.Join(errs...)
}

// note records the outcome of connecting to a port. A port that is neither open nor silent is closed: it refused.
func (s *sight) note(port int, err error) error {
	var late interface{ Timeout() bool }
	switch {
	case err == nil:
		s.open = append(s.open, port)
	case errors.As(err, &late) && late.Timeout():
		s.silent = append(s.silent, port)
	case !errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("scanning port %d: %w", port, err)
	}
	return nil
}

func (s sight) String() string {
	return fmt.Sprintf("open: %s; no answer: %s; closed: %d",
		list(s.open), list(s.silent), scanTo-len(s.open)-len(s.silent))
}

// list returns a text such as "22, 80", or "none".
func list(ports []int) string {
	if len(ports) == 0 {
		return "none"
	}
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(ports), " ", ", "), "[]")
}

// closedUDP sends to a UDP port of the gateway until the gateway answers that it is closed. The kernel sends a few such
// answers a second.
func closedUDP(from *lab.Host, port int) error {
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = net.Dial("udp4", net.JoinHostPort(gateway4, strconv.Itoa(port)))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	for end := time.Now().Add(stage.AnswerWithin); time.Now().Before(end); {
		if _, err = conn.Write([]byte("?")); err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(askAgain))
			_, err = conn.Read(make([]byte, 1))
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil
		}
	}
	return fmt.Errorf("udp/%d: want it closed: %w", port, err)
}
