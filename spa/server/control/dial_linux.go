package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Limits of an answer: a server that an attacker controls must not fill the memory of its client.
const (
	maxAnswer   = 64 << 20 // a reload may name a million clients, and a hundred thousand grants are 40 MiB
	maxReplies  = 1 << 18
	maxDecision = 1 << 20 // one line of a watch, which has no other limit
)

// answerWithin is the time limit for a reply: reading a hundred thousand client files again takes some seconds.
const answerWithin = time.Minute

// slowest is how many times that long all replies of an answer may take, so that a server that an attacker controls
// cannot make its client wait for ever.
const slowest = 10

// Client is the client's end of the socket.
type Client struct {
	conn     *net.UnixConn
	patience time.Duration // for each reply of an answer that ends
}

// Dial connects to the server of a state directory. See ErrNotRunning and ErrRefused.
func Dial(state string) (*Client, error) {
	client, err := dialIn(state, state)
	if errors.Is(err, ErrNotRunning) {
		if there, failed := dialIn(state, filepath.Join(state, Beside)); !errors.Is(failed, ErrNotRunning) {
			return there, failed
		}
	}
	return client, err
}

func dialIn(state, in string) (*Client, error) {
	path := filepath.Join(in, SocketName)
	dir, err := openIn(state, in)
	if err != nil {
		return nil, unreachable(path, err)
	}
	defer dir.Close()
	// The directory may belong to the server, which must not send its client to another server by a link.
	socket, err := openSocket(dir, SocketName)
	if err != nil {
		return nil, unreachable(path, err)
	}
	defer socket.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d", socket.Fd())})
	if err != nil {
		return nil, unreachable(path, err)
	}
	return &Client{conn: conn, patience: answerWithin}, nil
}

// unreachable returns the error for a server that cannot be connected to.
func unreachable(path string, err error) error {
	switch err = withoutCall(err); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: %w", path, ErrNotRunning)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: %w", path, ErrRefused)
	}
	return fmt.Errorf("connecting to spa-server at %s: %w", path, err)
}

// Close disconnects.
func (c *Client) Close() error { return c.conn.Close() }

// Ask sends a request and passes on each reply except the last. If the server did not execute it, the error is a
// *Denied. Ask ends with ctx, and, except for a watch, after a minute without a reply, or ten minutes
// of waiting for all of them.
func (c *Client) Ask(ctx context.Context, r Request, each func(Reply) error) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	left := slowest * c.patience
	c.await(ctx, r, left)
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// A server that refuses this client may have answered and closed already: read its answer even if the write failed.
	_, sent := c.conn.Write(append(line, '\n'))
	answer, longest := &io.LimitedReader{R: c.conn, N: maxAnswer}, maxAnswer
	if r.Command == CommandWatch {
		answer.N, longest = math.MaxInt64, maxDecision
	}
	lines := bufio.NewScanner(answer)
	lines.Buffer(nil, longest)
	next := func() bool {
		since := time.Now()
		defer func() { left -= time.Since(since) }()
		return lines.Scan()
	}
	for n := 0; next() && answer.N > 0; n++ {
		if n == maxReplies && r.Command != CommandWatch {
			return errEndless
		}
		reply, err := parse(lines.Bytes(), mostValues(r.Command))
		if err != nil {
			return err
		}
		if reply.Done {
			return ended(reply)
		}
		if err := each(reply); err != nil {
			return err
		}
		c.await(ctx, r, left) // the caller may have taken its time to print the reply
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(lines.Err(), os.ErrDeadlineExceeded) {
		return ErrSilent
	}
	if answer.N == 0 || errors.Is(lines.Err(), bufio.ErrTooLong) {
		return errEndless
	}
	return fmt.Errorf("the server hung up before it was done: %w", errors.Join(sent, lines.Err(), errHungUp))
}

var errEndless = errors.New("the server's answer is too long: an attacker may control it (systemctl stop spa-server " +
	"ends it; grants and sessions continue)")

// await sets the deadline for the next reply.
func (c *Client) await(ctx context.Context, r Request, left time.Duration) {
	if r.Command == CommandWatch {
		return
	}
	c.conn.SetDeadline(time.Now().Add(min(c.patience, left)))
	if ctx.Err() != nil {
		c.conn.SetDeadline(time.Unix(1, 0))
	}
}

var errHungUp = errors.New("it stopped, or has too many clients at once")

func ended(r Reply) error {
	if r.Error == "" {
		return nil
	}
	return &Denied{Text: r.Error, Hint: r.Hint}
}
