package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sallyport/spa/lab"
)

// A Server is a program that runs until it is stopped, or the story ends.
type Server struct {
	host  *Host
	cmd   *exec.Cmd
	said  lab.Buffer
	ended chan struct{} // closed when it has ended
	err   error         // why, once ended is closed
}

const (
	startWithin = time.Minute
	lookEvery   = 10 * time.Millisecond
)

// Start runs spa-server on a host with the files in a directory of the stage, and returns when it reports that it is
// ready, as it would to systemd: with a datagram READY=1, see sd_notify(3).
func (s *Stage) Start(ctx context.Context, on *Host, config string) (*Server, error) {
	s.Prompt(on.Name()+"#", "spa-server run --config "+config+" &")
	path := filepath.Join(s.Dir, fmt.Sprintf("ready%d", len(s.servers)))
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	if err := os.Chmod(path, 0o666); err != nil { // the server may have changed its user by then
		return nil, err
	}
	// Not under ctx: stopping the server may be a step of the story.
	cmd := s.program(context.Background(), "spa-server", "run", "--config", config)
	cmd.Env = append(cmd.Environ(), "NOTIFY_SOCKET="+path)
	server, err := s.Launch(on, cmd)
	if err != nil {
		return nil, err
	}
	go func() {
		<-server.ended
		ready.Close()
	}()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	return server, server.awaitReady(ready)
}

// Launch starts a program on a host.
func (s *Stage) Launch(on *Host, cmd *exec.Cmd) (*Server, error) {
	server := &Server{host: on, cmd: cmd, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &server.said, &server.said
	if err := on.Start(cmd); err != nil {
		return nil, err
	}
	s.servers = append(s.servers, server)
	go func() {
		server.err = cmd.Wait()
		close(server.ended)
	}()
	return server, nil
}

func (s *Server) awaitReady(ready *net.UnixConn) error {
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

// Log returns what the server has printed.
func (s *Server) Log() string { return s.said.String() }

// HasSaid waits until the server has printed something, and returns an error if it does not.
func (s *Server) HasSaid(ctx context.Context, words string) error {
	ctx, cancel := context.WithTimeout(ctx, AnswerWithin)
	defer cancel()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for !strings.Contains(s.Log(), words) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return fmt.Errorf("the server's log does not say %q", words)
		}
	}
	return nil
}

// Kill ends the server as a loss of power does.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
}

// Stop asks the server to exit, and returns an error if it does not, or fails.
func (s *Server) Stop(ctx context.Context) error {
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
