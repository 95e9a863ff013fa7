package firewall

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// alarm goes off at a time of the wall clock, and when that clock is set or the machine has
// slept: what goes by the monotonic clock, as the timers of Go, would be late then.
type alarm struct {
	file *os.File // a timerfd
}

func openAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &alarm{os.NewFile(uintptr(fd), "timerfd")}, nil
}

// set makes it go off after d, and not when it was set to before.
func (a *alarm) set(d time.Duration) error {
	raw, err := a.file.SyscallConn()
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

// wait waits until it goes off, or ctx ends.
func (a *alarm) wait(ctx context.Context) error {
	if err := a.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { a.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var times [8]byte
	_, err := a.file.Read(times[:])
	if errors.Is(err, unix.ECANCELED) {
		return nil
	}
	return err
}

func (a *alarm) close() error { return a.file.Close() }
