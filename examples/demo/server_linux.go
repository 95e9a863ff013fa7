package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a running spa-server.
type server struct {
	cmd   *exec.Cmd
	said  *transcript
	ended chan struct{} // closed when it has ended
	err   error         // why, once ended is closed
}

const (
	startWithin = time.Minute
	lookEvery   = 10 * time.Millisecond
)

// start runs spa-server on the gateway and returns when it reports that it is ready, as it would to systemd: with a
// datagram READY=1, see sd_notify(3).
func (d *demo) start(ctx context.Context) error {
	path := filepath.Join(d.dir, "ready")
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return err
	}
	defer ready.Close()
	if err := os.Chmod(path, 0o666); err != nil { // the server may have changed its user by then
		return err
	}
	// Not under ctx: stopping the server is a step of the story.
	cmd := d.program(context.Background(), "spa-server", "run", "--config", "gateway")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+path)
	s := &server{cmd: cmd, said: new(transcript), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s.said, s.said
	if err := d.gateway.Start(cmd); err != nil {
		return err
	}
	d.server = s
	go func() {
		s.err = cmd.Wait()
		close(s.ended)
		ready.Close()
	}()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	return s.awaitReady(ready)
}

func (s *server) awaitReady(ready *net.UnixConn) error {
	if err := ready.SetReadDeadline(time.Now().Add(startWithin)); err != nil {
		return err
	}
	message := make([]byte, 1024)
	for {
		n, err := ready.Read(message)
		if errors.Is(err, net.ErrClosed) {
			return errors.New("the server ended instead of getting ready")
		}
		if err != nil {
			return fmt.Errorf("waiting for the server to be ready: %w", err)
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			return nil
		}
	}
}

// hasSaid waits until the server has printed something, and returns an error if it does not.
func (s *server) hasSaid(ctx context.Context, words string) error {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for !strings.Contains(s.said.String(), words) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("the server's log does not say %q", words)
		}
	}
	return nil
}

// stop asks the server to exit, and returns an error if it does not, or fails.
func (s *server) stop(ctx context.Context) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the server: %w", err)
	}
	limit := time.NewTimer(startWithin)
	defer limit.Stop()
	select {
	case <-s.ended:
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return fmt.Errorf("the server still runs %v after it was asked to stop", startWithin)
	}
	if s.err != nil {
		return fmt.Errorf("the server stopped badly: %w", s.err)
	}
	return nil
}

// transcript is a process's output so far.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Write(p)
}

func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}
