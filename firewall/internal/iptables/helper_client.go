package iptables

import (
	"cmp"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"sallyport/spa/helper"
)

const (
	// startTime is how long the helper may take to find the programs and probe the kernel.
	startTime = 2 * time.Minute
	// answerTime is how long any other request may take: several programs, one after another, on a busy machine. A
	// helper that exceeds it is not used again.
	answerTime = 2 * time.Minute
)

// ErrHelper is wrapped by the errors of all calls once the helper has ended or hangs.
var ErrHelper = errors.New("the helper that runs iptables has ended or hangs; the guard stays in place and grants " +
	"end on time, but changes by other tools cannot be repaired: restart spa-server")

// Helper is the daemon's end of the process that runs iptables.
type Helper struct {
	Programs
	*helper.Process
	Patience time.Duration // how long to wait for a reply

	mu  sync.Mutex // guards the order of requests and replies
	in  *gob.Decoder
	out *gob.Encoder

	fate sync.Mutex // guards the field below
	gone error      // why there are no more replies
}

// startHelper starts this program again as the helper, in the network namespace of the calling thread, and waits for
// its findings. It searches programs in path (empty: the usual directories); kind, if not empty, selects one kind of
// iptables.
func startHelper(path, kind, lock string) (*Helper, error) {
	h := &Helper{Patience: answerTime}
	var err error
	h.Process, err = helper.Start(HelperName, false, h.over, HelperArg, cmp.Or(path, programPath), kind,
		cmp.Or(lock, LockPath))
	if err != nil {
		return nil, fmt.Errorf("starting the helper for iptables: %w", err)
	}
	h.in, h.out = gob.NewDecoder(h.Conn), gob.NewEncoder(h.Conn)
	if err := h.greet(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// over records how the process ended. A caller waiting for a reply sees the socket close.
func (h *Helper) over(err error) {
	if err == nil {
		err = errors.New("it exited")
	}
	h.fail(err)
}

// fail keeps the first reason why there are no more replies, and returns it.
func (h *Helper) fail(err error) error {
	h.fate.Lock()
	defer h.fate.Unlock()
	if h.gone == nil {
		h.gone = fmt.Errorf("%w (%w)", ErrHelper, err)
	}
	return h.gone
}

// trouble returns why the helper can no longer be used, or nil.
func (h *Helper) trouble() error {
	h.fate.Lock()
	defer h.fate.Unlock()
	return h.gone
}

// greet receives the helper's findings.
func (h *Helper) greet() error {
	if err := h.Conn.SetReadDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	if err := h.in.Decode(&h.Programs); err != nil {
		return fmt.Errorf("the helper for iptables did not start: %w", err)
	}
	if h.Trouble != "" {
		return fmt.Errorf("iptables cannot guard: %s", h.Trouble)
	}
	return nil
}

// Ask sends a request to the helper and returns the reply. If another program holds the lock of iptables, it returns
// errBusy.
func (h *Helper) Ask(r Request) (reply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.trouble(); err != nil {
		return reply{}, err
	}
	var answer reply
	err := h.Conn.SetDeadline(time.Now().Add(h.Patience))
	if err == nil {
		err = h.out.Encode(r)
	}
	if err == nil {
		err = h.in.Decode(&answer)
	}
	if err != nil {
		return reply{}, h.lost(err)
	}
	switch answer.Outcome {
	case done:
		return answer, nil
	case busy:
		return reply{}, fmt.Errorf("%w (%s)", errBusy, answer.Text)
	case foreign:
		return reply{}, foreignError(answer.Text)
	}
	return reply{}, fmt.Errorf("iptables: %s", answer.Text)
}

// lost returns the error of a request without a reply. The helper cannot be used any more: its next reply would be
// the one to this request.
func (h *Helper) lost(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no reply for %v", h.Patience)
	} else {
		h.AwaitEnd() // its exit status says more than the closed socket
	}
	err = h.fail(err)
	h.Conn.Close()
	return err
}
