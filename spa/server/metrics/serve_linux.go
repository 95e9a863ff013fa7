package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// Limits for clients that send nothing, or do not read.
const (
	readWithin  = 5 * time.Second
	writeWithin = 10 * time.Second
	idleWithin  = 30 * time.Second
	maxHeader   = 8 << 10
	maxConns    = 16
)

// InUse is the error of Open if another program has the address.
type InUse struct {
	Address string // as in server.toml
	Show    string // the command that shows which program it is
	err     error
}

// Error returns the reason.
func (e *InUse) Error() string { return "another program has " + e.Address + ": " + e.err.Error() }

// Unwrap returns the error of the system.
func (e *InUse) Unwrap() error { return e.err }

// Open listens on the page's address, before privileges are dropped. A Unix socket gets the mode 0660, the user that
// the server becomes, and the group of its directory.
func Open(m config.Metrics, owner int, o Options) (*Page, error) {
	p := newPage(o)
	var err error
	p.listener, p.closer, err = listen(m, owner)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Close stops listening, and removes a Unix socket if that is permitted.
func (p *Page) Close() error {
	if err := p.closer.Close(); !errors.Is(err, net.ErrClosed) { // Serve has
		return err
	}
	return nil
}

func listen(m config.Metrics, owner int) (net.Listener, io.Closer, error) {
	if path, ok := m.Socket(); ok {
		l, err := control.Bind(path, owner)
		if errors.Is(err, control.ErrInUse) {
			err = &InUse{m.Listen, "ss -xlp | grep -F " + quote.Shell(path), err}
		}
		if err != nil {
			return nil, nil, err
		}
		return l.Net(), l, nil
	}
	l, err := net.Listen("tcp", m.Listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		port := m.Listen[strings.LastIndexByte(m.Listen, ':'):]
		err = &InUse{m.Listen, fmt.Sprintf("ss -tlnp 'sport = %s'", port), syscall.EADDRINUSE}
	}
	if err != nil {
		return nil, nil, err
	}
	return l, l, nil
}

// Serve answers until ctx ends. A client that sends no request or does not read in time is disconnected, and if
// there are too many, the oldest one.
func (p *Page) Serve(ctx context.Context) error {
	open := &conns{}
	server := &http.Server{
		Handler:           http.HandlerFunc(p.answer),
		ReadTimeout:       readWithin,
		ReadHeaderTimeout: readWithin,
		WriteTimeout:      writeWithin,
		IdleTimeout:       idleWithin,
		MaxHeaderBytes:    maxHeader,
		ConnState:         open.note,
		ErrorLog:          log.New(io.Discard, "", 0), // strangers on this host must not fill the log
	}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(p.listener); !errors.Is(err, http.ErrServerClosed) {
		p.log.Error("the metrics page is down", "error", err, "do", "systemctl restart spa-server")
	}
	<-ctx.Done() // the server works without its page
	return nil
}

// answer sends the page. It is made before the first byte is sent, so a slow reader holds no lock.
func (p *Page) answer(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	page, err := p.text()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(format))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Write(page) // an error means that the reader has gone
}

// conns are the open connections, the oldest first.
type conns struct {
	mu   sync.Mutex
	list []net.Conn
}

// note updates the list. A new connection ends the oldest if there are too many.
func (c *conns) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.list = append(c.list, conn)
		if len(c.list) > maxConns {
			c.list[0].Close()
			c.list = c.list[1:]
		}
	case http.StateClosed, http.StateHijacked:
		if i := slices.Index(c.list, conn); i >= 0 {
			c.list = slices.Delete(c.list, i, i+1)
		}
	}
}
