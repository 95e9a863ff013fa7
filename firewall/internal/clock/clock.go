// Package clock adds what the clocks of package time lack: an alarm by the wall clock, and the time since boot.
package clock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Alarm goes off at a time of the wall clock, and also when that clock is set or the machine wakes from sleep. Go's
// timers use the monotonic clock and would be late then.
type Alarm struct {
	File *os.File // a timerfd
}

// OpenAlarm returns an alarm that is not set.
func OpenAlarm() (*Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &Alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// Set makes the alarm go off after d, in place of an earlier setting.
func (a *Alarm) Set(d time.Duration) error {
	raw, err := a.File.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for {
			at := unix.ItimerSpec{Value: unix.NsecToTimespec(time.Now().Add(d).UnixNano())}
			failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &at, nil)
			if failed != unix.ECANCELED { // the clock was set in this moment
				return
			}
		}
	})
	return errors.Join(err, os.NewSyscallError("timerfd_settime", failed))
}

// Wait waits until the alarm goes off or ctx ends.
func (a *Alarm) Wait(ctx context.Context) error {
	if err := a.File.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { a.File.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var times [8]byte
	_, err := a.File.Read(times[:])
	if errors.Is(err, unix.ECANCELED) {
		return nil
	}
	return err
}

// Close releases the alarm.
func (a *Alarm) Close() error { return a.File.Close() }

// Boot returns the time since boot, including time asleep.
func Boot() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(t.Nano()), nil
}
