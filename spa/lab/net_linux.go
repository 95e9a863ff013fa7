package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Dial connects by TCP from inside the host to raddr, an address and port. The connection leaves from laddr: an
// address, an address and port, or "" for any.
func Dial(h *Host, laddr, raddr string, timeout time.Duration) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	if laddr != "" {
		local, err := localAddr(laddr)
		if err != nil {
			return nil, h.wrap("dialing from "+laddr, err)
		}
		dialer.LocalAddr = local
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = dialer.Dial("tcp", raddr)
		return err
	})
	return conn, err
}

func localAddr(s string) (*net.TCPAddr, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return net.TCPAddrFromAddrPort(ap), nil
}

// Echo is a TCP server that sends back what it receives.
type Echo struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil once closed
}

// EchoServer starts an echo server inside the host on an address and port, such as ":22". It ends with Close or with
// the host.
func EchoServer(h *Host, addr string) (*Echo, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false) // plain TCP: what a firewall sees must not depend on the kernel's configuration
	e := &Echo{conns: make(map[net.Conn]bool)}
	err := h.Do(func() (err error) {
		e.listener, err = config.Listen(context.Background(), "tcp", addr)
		return err
	})
	if err != nil {
		return nil, h.wrap("starting an echo server", err)
	}
	e.wg.Go(e.accept)
	h.closeWith(e)
	return e, nil
}

// Addr returns the address that the server listens on.
func (e *Echo) Addr() netip.AddrPort {
	ap := e.listener.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Close ends the server and its connections, and waits for both.
func (e *Echo) Close() error {
	err := e.listener.Close()
	e.mu.Lock()
	for conn := range e.conns {
		conn.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (e *Echo) accept() {
	for {
		conn, err := e.listener.Accept()
		if err != nil {
			return
		}
		if !e.enter(conn) {
			conn.Close()
			return
		}
		e.wg.Go(func() {
			_, _ = io.Copy(conn, conn) // ends with the connection, for any reason
			e.leave(conn)
		})
	}
}

func (e *Echo) enter(conn net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil {
		return false
	}
	e.conns[conn] = true
	return true
}

func (e *Echo) leave(conn net.Conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	conn.Close()
	delete(e.conns, conn)
}

// Echoes sends a text on the connection and returns an error unless it comes back within the time.
func Echoes(conn net.Conn, say string, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, say); err != nil {
		return err
	}
	heard := make([]byte, len(say))
	if _, err := io.ReadFull(conn, heard); err != nil {
		return err
	}
	if string(heard) != say {
		return fmt.Errorf("lab: said %q, heard %q", say, heard)
	}
	return conn.SetDeadline(time.Time{})
}
