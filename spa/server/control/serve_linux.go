package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Limits for clients that do nothing, or too much.
const (
	maxConns   = 32
	maxRequest = 4 << 10
	askWithin  = 5 * time.Second  // for a request to arrive
	readWithin = 10 * time.Second // for a client to read a reply
)

// Handler answers one request: it sends replies, and its error is in the last. Its context ends when the client
// disconnects or the server stops.
type Handler func(ctx context.Context, r Request, a *Answer) error

// Serve answers clients until ctx ends, and returns once all of them are gone.
func (l *Listener) Serve(ctx context.Context, handle Handler) error {
	stop := context.AfterFunc(ctx, func() { l.net.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	places := make(chan struct{}, maxConns)
	for {
		conn, err := l.net.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil { // out of descriptors, or the client disconnected already
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case places <- struct{}{}:
			conns.Go(func() {
				defer func() { <-places }()
				serve(ctx, conn, handle)
			})
		default:
			conn.Close() // programs of root have all places, and must free one
		}
	}
}

// serve answers one client.
func serve(parent context.Context, conn *net.UnixConn, handle Handler) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) // interrupts any read or write
	defer stop()

	a := &Answer{conn: conn, within: readWithin}
	uid, err := admits(conn)
	if err != nil {
		a.end(err)
		return
	}
	r, err := read(conn)
	if err != nil {
		a.end(err)
		return
	}
	r.UID = uid
	// Nothing more may arrive: anything else, or a disconnect, ends the request.
	var hungUp sync.WaitGroup
	defer hungUp.Wait()
	hungUp.Go(func() {
		conn.SetReadDeadline(time.Time{})
		conn.Read(make([]byte, 1))
		cancel()
	})
	err = handle(ctx, r, a)
	if ctx.Err() == nil {
		a.end(err)
	}
	conn.Close()
}

// admits returns the client's user, or an error unless that is root or the user that this process runs as. The
// socket's mode ensures the same; this still holds if the mode was changed.
func admits(conn *net.UnixConn) (uid int, err error) {
	at, err := Peer(conn)
	if err != nil {
		return 0, fmt.Errorf("checking the client's user: %w", err)
	}
	if at.Uid != 0 && int(at.Uid) != os.Geteuid() {
		return 0, &Denied{Text: ErrRefused.Error()}
	}
	return int(at.Uid), nil
}

// read reads the request: one line of limited length, in limited time.
func read(conn *net.UnixConn) (Request, error) {
	conn.SetReadDeadline(time.Now().Add(askWithin))
	line, err := bufio.NewReaderSize(io.LimitReader(conn, maxRequest), maxRequest).ReadBytes('\n')
	if err != nil {
		return Request{}, errors.New("no complete request arrived")
	}
	var r Request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Request{}, errUnknown
	}
	if rest, _ := io.ReadAll(d.Buffered()); len(bytes.TrimSpace(rest)) > 0 {
		return Request{}, errors.New("one request at a time")
	}
	return r, nil
}

// Answer sends the replies to a client.
type Answer struct {
	conn   *net.UnixConn
	within time.Duration // zero: no limit for the reader
}

// Patient removes the time limit for the client to read: a handler that calls it must hold no lock.
func (a *Answer) Patient() { a.within = 0 }

// Send sends replies, together: for each system call the client wakes.
func (a *Answer) Send(rs ...Reply) error {
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for _, r := range rs {
		if err := encoder.Encode(r); err != nil {
			return err
		}
	}
	if a.within > 0 {
		a.conn.SetWriteDeadline(time.Now().Add(a.within))
	}
	_, err := a.conn.Write(lines.Bytes())
	return err
}

// end sends the last reply.
func (a *Answer) end(err error) {
	r := Reply{Done: true}
	if err != nil {
		r.Error = err.Error()
	}
	if denied, ok := errors.AsType[*Denied](err); ok {
		r.Hint = denied.Hint
	}
	a.within = readWithin
	_ = a.Send(r) // the client may have disconnected
}
