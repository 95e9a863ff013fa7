package control

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestSilentServer: a hung server accepts the request and does not answer. Clients give up after a while, except
// watchers.
func TestSilentServer(t *testing.T) {
	dir := t.TempDir()
	hanging, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer hanging.Close()
	for _, command := range []Command{CommandStatus, CommandGrants, CommandRevoke, CommandReload} {
		client, err := Dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		client.patience = time.Millisecond
		err = client.Ask(t.Context(), Request{Command: command}, func(Reply) error { return nil })
		if !errors.Is(err, ErrSilent) {
			t.Errorf("%s: got %v, want %v", command, err, ErrSilent)
		}
		client.Close()
	}

	watcher, err := Dial(dir)
	if err != nil {
		t.Fatal(err)
	}
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
