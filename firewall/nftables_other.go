//go:build !linux

package firewall

import (
	"errors"
	"fmt"
	"os"
	"time"
)

const setSize = 1 << 19

func newNftables(*Config) (backend, error) {
	return nil, fmt.Errorf("nftables is a part of Linux: %w", errors.ErrUnsupported)
}

func canPersist() bool { return false }

func serveAsKeeper() {}

type sessions struct{}

func openSessions() (*sessions, error) {
	return nil, fmt.Errorf("sock_diag is a part of Linux: %w", errors.ErrUnsupported)
}

func (*sessions) close() error                          { return nil }
func (*sessions) flows(func(flow) bool) ([]flow, error) { return nil, nil }

func (*sessions) cut(func(flow) bool, uint32) (int, error) { return 0, errors.ErrUnsupported }

func teardown(string, func() error) (rest func() error, err error) {
	return func() error { return nil }, fmt.Errorf("nftables is a part of Linux: %w", errors.ErrUnsupported)
}

func bootClock() (time.Duration, error) { return 0, errors.ErrUnsupported }

func openOwned(string, bool) (*os.File, error) { return nil, errors.ErrUnsupported }

func alone(_ *os.File, do func() error) error { return do() }
