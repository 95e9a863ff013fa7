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

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/spa/config"
)

// openWatcher starts to listen for changes of client files, while the directory can be opened.
func (s *Server) openWatcher() error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("server: watching the client files: %w", err)
	}
	s.files = watcher
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
		case event, ok := <-s.files.Events:
			if !ok {
				return nil
			}
			s.reloadFile(ctx, event)
		case err, ok := <-s.files.Errors:
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

func (s *Server) reloadFile(ctx context.Context, event fsnotify.Event) {
	if event.Op == fsnotify.Chmod {
		return
	}
	if name, ok := clientName(event.Name); ok {
		s.reloadClient(ctx, name)
	}
}

// reloadAll is what is left to do when the kernel had more changes to tell than it could hold.
func (s *Server) reloadAll(ctx context.Context) {
	names, err := s.clients.Names()
	if err != nil {
		s.log.Error("not every client file could be listed again", "error", err)
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

func (s *Server) clientsDir() string { return filepath.Join(s.config.Dir, config.ClientsDir) }

// readable makes sure that client files can still be read: their changes have to take effect.
func (s *Server) readable() error {
	if _, err := s.clients.Names(); errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("server: without privileges, as user %s: %w; hand the directory over with: chgrp -R %[1]s %s && chmod 750 %[3]s",
			s.sandbox.User, err, s.clientsDir())
	}
	return nil
}

// reloadClient makes one client file's change take effect. A client that may do less than before
// loses, now, the grants that it could not have any more.
func (s *Server) reloadClient(ctx context.Context, name string) {
	s.line.Lock()
	defer s.line.Unlock()
	before, after, err := s.clients.Reload(name)
	switch {
	case err != nil:
		s.log.Error("a client file was not taken over; the client is as it was", "error", err)
	case after == nil && before == nil:
	case after == nil:
		s.log.Info("client removed", "client", name)
		s.shut(ctx, name, nil)
	case !after.Revoked.IsZero():
		s.log.Info("client revoked", "client", name)
		s.shut(ctx, name, nil)
	case before == nil:
		s.log.Info("client added", "client", name, "allow", strings.Join(after.Allow, " "))
	default:
		s.log.Info("client changed", "client", name, "allow", strings.Join(after.Allow, " "))
		s.shut(ctx, name, after.Allow)
	}
}

// shut ends the live grants of a client for every service that is not allowed any more.
func (s *Server) shut(ctx context.Context, client string, allowed []string) {
	now := s.now()
	var gone []string
	for _, g := range s.firewall.Grants(now) {
		if g.Client == client && !slices.Contains(allowed, g.Service) && !slices.Contains(gone, g.Service) {
			gone = append(gone, g.Service)
		}
	}
	if len(gone) == 0 {
		return
	}
	ended, err := s.firewall.Revoke(ctx, firewall.Match{Client: client, Services: gone}, now)
	if err != nil {
		s.log.Error("the client's grants could not be ended; they end by themselves", "client", client, "error", err)
		return
	}
	s.log.Info("grants ended", "client", client, "grants", len(ended))
}
