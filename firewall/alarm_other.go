//go:build !linux

package firewall

import (
	"context"
	"errors"
	"time"
)

// alarm is not needed for a dry run.
type alarm struct{}

func openAlarm() (*alarm, error)          { return nil, errors.ErrUnsupported }
func (*alarm) set(time.Duration) error    { return errors.ErrUnsupported }
func (*alarm) wait(context.Context) error { return errors.ErrUnsupported }
func (*alarm) close() error               { return nil }
