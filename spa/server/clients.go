package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"

	"sallyport/keys"
	"sallyport/spa/config"
	"sallyport/spa/sandbox"
)

// openWatcher starts to listen for changes of client files, while the directory can be opened.
func (s *Server) openWatcher() error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("server: watching the client files: %w", err)
	}
	s.watcher = watcher
	s.keep(watcher)
	if err := watcher.Add(s.clientsDir()); err != nil {
		return fmt.Errorf("server: watching the client files: %w", err)
	}
	return nil
}

// watchClients reads each client file that changes, until ctx ends.
func (s *Server) watchClients(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case event, ok := <-s.watcher.Events:
			if !ok {
				return nil
			}
			if err := s.reloadFile(ctx, event); err != nil {
				return err
			}
		case err, ok := <-s.watcher.Errors:
			if !ok {
				return nil
			}
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				s.reloadAll(ctx)
				continue
			}
			return fmt.Errorf("server: watching the client files: %w", err)
		}
	}
}

// reloadFile reads a file that changed, also when only its mode did: one that was refused for it is
// mended that way. A directory that is moved away ends the server: its changes could not be seen.
func (s *Server) reloadFile(ctx context.Context, event fsnotify.Event) error {
	if filepath.Clean(event.Name) == s.clientsDir() {
		if event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename) {
			return fmt.Errorf("server: %s was moved away, so a revoked key would go unnoticed; start again with the directory that is to count", s.clientsDir())
		}
		return nil
	}
	if name, ok := clientName(event.Name); ok {
		s.reloadClient(ctx, name)
	}
	return nil
}

// reloadAll is what is left to do when the kernel had more changes to tell than it could hold.
func (s *Server) reloadAll(ctx context.Context) {
	names, err := s.clients.Names()
	if err != nil {
		s.log.Error("could not list all client files again: a changed one may be missed (spa-server reload)", "error", err)
	}
	for _, name := range names {
		s.reloadClient(ctx, name)
	}
}

// clientName returns the client whose file has that name.
func clientName(file string) (string, bool) {
	name, ok := strings.CutSuffix(filepath.Base(file), ".toml")
	return name, ok && keys.ValidName(name) == nil
}

func (s *Server) clientsDir() string { return filepath.Join(s.dir, config.ClientsDir) }

// readable makes sure that client files can still be read: their changes have to take effect.
func (s *Server) readable() error {
	_, err := s.clients.Names()
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	command := fmt.Sprintf("chgrp -R %s %s && chmod 750 %[2]s", s.sandbox.User, s.clientsDir())
	if s.sandbox.UID == sandbox.Unnamed {
		command = makeUser + " && " + handOver(SystemUser, s.dir)
	}
	return fmt.Errorf("server: without privileges, as user %s: %w; hand the directory over with: %s", s.sandbox.User, err, command)
}

// reloadClient makes one client file's change take effect. A client that may do less than before
// loses, now, the grants that it could not have any more.
func (s *Server) reloadClient(ctx context.Context, name string) {
	s.reading.Lock()
	defer s.reading.Unlock()
	s.line.Lock()
	defer s.line.Unlock()
	before, after, err := s.clients.Reload(name)
	if err != nil {
		s.log.Error("a client file was not taken over; the client is as it was", "error", err)
		return
	}
	if before == nil && after == nil {
		return
	}
	s.log.Info("client "+change(before, after), "client", name)
	if before != nil {
		s.shut(ctx, before, after)
	}
}

func change(before, after *keys.Client) string {
	switch {
	case after == nil:
		return "removed"
	case !after.Revoked.IsZero():
		return "revoked"
	case before == nil:
		return "added"
	}
	return "changed"
}

// shut ends what the client holds and may not hold any more, and sees to it that no packet of before
// opens it again.
func (s *Server) shut(ctx context.Context, before, after *keys.Client) {
	now := s.now()
	s.narrow(before, after)
	s.endUnkept(ctx, s.firewall.GrantsOf(before.Name, now), now)
}

// narrow closes what the client may not ask for any more to packets that are on their way. Where
// that is ports, it is all that is asked for by port: a request names one, a file may name a range.
func (s *Server) narrow(before, after *keys.Client) {
	lost := slices.DeleteFunc(slices.Clone(before.Allow), func(service string) bool {
		return after != nil && slices.Contains(after.Allow, service)
	})
	for i, service := range lost {
		if strings.Contains(service, "/") {
			lost[i] = byPort
		}
	}
	s.takeAway(before.Name, lost, s.now())
}
