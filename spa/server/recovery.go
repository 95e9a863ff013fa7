package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/recovery"
	"sallyport/spa/server/control"
	"sallyport/spa/server/metrics"
	"sallyport/spa/server/setup"
)

// openUses opens the counts of recovery keys. If that fails, recovery keys are refused, and all others work.
func (s *Server) openUses() error {
	root, err := setup.OpenRoot(s.config.State)
	if err != nil {
		return err
	}
	s.keep(root)
	path := s.inState(config.RecoveryFile)
	open := func() (file *os.File, err error) {
		return file, setup.Either(path, func() (err error) { file, err = recovery.OpenFile(path); return err })()
	}
	s.uses = recovery.New(open, func() (*os.File, error) { return recovery.OpenIn(root, config.RecoveryFile) })
	s.keep(s.uses)
	s.verifyUses()
	for _, r := range s.recoveryStatus() {
		if r.Lost != "" {
			s.log.Error("recovery key refused: make another with spa-keygen rotate", "client", r.Client, "why", r.Lost)
		}
	}
	return nil
}

// used is what a floor in the journal is for that has the number of a key's uses, as a time. It is no name or port.
const used = "*used*"

// verifyUses refuses recovery keys that had more uses than the file says: an older content was written over it. The
// journal knows that until the host is rebooted.
func (s *Server) verifyUses() {
	s.uses.Verify(func(c recovery.Count) int {
		before := s.journal.FloorOf(ofKey(c.ID, used))
		if before.IsZero() {
			if err := s.noteUses(c); err != nil {
				s.log.Error("an older count of the uses of a recovery key would go unnoticed", "key", c.ID, "error", err)
			}
			return 0
		}
		return int(before.UnixNano())
	})
}

// noteUses puts the number of a key's uses into the journal.
func (s *Server) noteUses(c recovery.Count) error {
	if c.Used == 0 {
		return nil
	}
	return s.journal.SetFloor(ofKey(c.ID, used), time.Unix(0, int64(c.Used)))
}

// ErrNoRecovery means that the client that must confirm the guard cannot.
var ErrNoRecovery = errors.New("not a recovery client with a valid key and uses left")

// mayConfirm returns an error unless the client has a recovery key with uses left; an empty name is no client.
func (s *Server) mayConfirm(client string) error {
	if client == "" {
		return nil
	}
	for _, r := range s.recoveryStatus() {
		if r.Client == client && r.Left > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", client, ErrNoRecovery)
}

// refreshUses reads the keys that spa-keygen has made since. It records a key before it writes the client's file, so an
// ordinary client that was a recovery client stays limited.
func (s *Server) refreshUses() {
	if err := s.uses.Refresh(); err != nil && s.anyRecovery() {
		s.log.Error("recovery keys are refused: their counts cannot be read", "error", err)
	}
}

func (s *Server) anyRecovery() bool {
	for c := range s.clients.All() {
		if c.Recovery > 0 {
			return true
		}
	}
	return false
}

// takeUse takes one of the uses of a recovery key, durably, before anything is opened. Keys of other clients have no
// limit. A retry is the use that it retries. A failure of the firewall afterwards gives no use back: the port may be
// open for a moment.
func (s *Server) takeUse(e *audit.Event, retry bool) error {
	k := e.Knock
	count, err := s.uses.Use(k.KeyID, k.Client.Recovery, k.Request.ID, retry, e.Time)
	if err == nil && count.ID == 0 || s.uses == nil {
		return err
	}
	s.alarm(e, count, err)
	return errors.Join(err, s.noteUses(count))
}

// alarm logs and records that a recovery key was used, or was refused.
func (s *Server) alarm(e *audit.Event, count recovery.Count, failed error) {
	k := e.Knock
	left := count.Left(k.Client.Recovery)
	more := []slog.Attr{slog.Any("services", service.Names(k.Services)), slog.Int("left", left)}
	message, result := "RECOVERY KEY USED", "used"
	if failed != nil {
		message, result = "RECOVERY KEY REFUSED", "refused"
		more = append(more, slog.String("reason", failed.Error()))
	}
	s.log.LogAttrs(context.Background(), slog.LevelError, message, append(more, slog.String("client", e.Client),
		slog.String("from", e.From.Addr().String()))...)
	// A lost line is counted, for status.
	_ = s.audit.RecordAct(audit.Act{Time: e.Time, Act: "recovery", Program: "spa-server", Client: e.Client,
		Key: k.KeyID.String(), Source: e.From.Addr(), By: audit.By{UID: os.Getuid()},
		More: append(more, slog.String("result", result))})
}

// recoveryStatus returns what is left to each client with a recovery key that is not revoked.
func (s *Server) recoveryStatus() []control.Recovery {
	var list []control.Recovery
	trouble := s.uses.Trouble()
	for c := range s.clients.All() {
		count, known := s.uses.Count(c.ID)
		if !c.Revoked.IsZero() || c.Recovery == 0 && !known || len(list) == mostSeen {
			continue
		}
		r := control.Recovery{Client: c.Name, Left: count.Left(c.Recovery), Last: count.Last,
			Uses: cmp.Or(min(c.Recovery, count.Uses), count.Uses)}
		if !known {
			r.Lost = strings.ReplaceAll(cmp.Or(trouble, recovery.ErrLost).Error(), "\n", "; ")
		}
		list = append(list, r)
	}
	return list
}

// recoverySample returns what the metrics page has of recovery keys.
func (s *Server) recoverySample() metrics.Recovery {
	var m metrics.Recovery
	m.Used, m.Refused = s.uses.Total()
	for _, r := range s.recoveryStatus() {
		m.Keys++
		if r.Left == 0 {
			m.Spent++
		}
	}
	return m
}
