package control

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// TestSilentServer: a hung server accepts the request and does not answer. Clients give up after a while, except
// watchers.
func TestSilentServer(t *testing.T) {
	dir := t.TempDir()
	hanging := lab.Value(net.Listen("unix", filepath.Join(dir, SocketName)))(t)
	defer hanging.Close()
	for _, command := range []Command{CommandStatus, CommandGrants, CommandRevoke, CommandReload} {
		client, err := Dial(dir)
		lab.Must(t, err)
		client.patience = time.Millisecond
		err = client.Ask(t.Context(), Request{Command: command}, func(Reply) error { return nil })
		if !errors.Is(err, ErrSilent) {
			t.Errorf("%s: got %v, want %v", command, err, ErrSilent)
		}
		client.Close()
	}

	watcher := lab.Value(Dial(dir))(t)
	watcher.patience = time.Millisecond
	ended := make(chan error, 1)
	go func() {
		ended <- watcher.Ask(t.Context(), Request{Command: CommandWatch}, func(Reply) error { return nil })
	}()
	select {
	case err := <-ended:
		t.Errorf("who watches is sent away: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	watcher.Close()
	<-ended
}

// TestTricklingServer: a server that keeps sending replies that say nothing cannot keep a client for ever.
func TestTricklingServer(t *testing.T) {
	dir := hostileServer(t, func(conn net.Conn) {
		for range time.Tick(time.Millisecond) {
			if _, err := conn.Write([]byte("{}\n")); err != nil {
				return
			}
		}
	})
	client := lab.Value(Dial(dir))(t)
	defer client.Close()
	client.patience = time.Second / 2
	ended := make(chan error, 1)
	go func() {
		ended <- client.Ask(t.Context(), Request{Command: CommandReload}, func(Reply) error { return nil })
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrSilent) {
			t.Errorf("got %v, want %v", err, ErrSilent)
		}
	case <-time.After(lab.Patience):
		t.Error("it keeps waiting")
	}
}
