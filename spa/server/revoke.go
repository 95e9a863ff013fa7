package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/quote"
	"sallyport/spa/server/control"
)

// revoke ends the grants of a client or an address now; keys stay valid. With Cut it also ends sessions, including
// those that outlived their grants.
func (s *Server) revoke(parent context.Context, r control.Request) (*control.Revoked, error) {
	if (r.Client == "") != r.Source.IsValid() {
		return nil, denied("", "a revocation needs either a client or an address")
	}
	r.Source = r.Source.Unmap().WithZone("") // as grants have it
	ctx := context.WithoutCancel(parent)     // begun is done
	if err := s.revocable(r); err != nil {
		return nil, err
	}
	ended, cuttable, err := s.end(ctx, r)
	if err != nil {
		s.recordRevoke(r, len(ended), 0, err)
		return nil, denied("", err.Error(), fmt.Sprintf("grants that ended anyway: %d", len(ended)))
	}
	revoked := &control.Revoked{Ended: shown(ended)}
	if r.Client != "" {
		revoked.Key, revoked.Since = s.keyOf(r.Client), s.since
		client, ok := s.clients.Client(r.Client)
		revoked.Fleet = ok && client.Fleet
	}
	if r.Cut {
		if revoked.Sessions, err = s.firewall.Cut(ctx, cuttable); err != nil {
			s.recordRevoke(r, len(ended), 0, err)
			return nil, denied("the grants have ended; only sessions continue", "could not end the sessions: "+err.Error())
		}
	}
	elsewhere, unconfirmed := s.revokeElsewhere(r, ended)
	if elsewhere != "" {
		revoked.Site, revoked.Unconfirmed = elsewhere, unconfirmed != nil
	}
	s.recordRevoke(r, len(revoked.Ended), revoked.Sessions, unconfirmed) // even with nothing open: see floors.go
	if elsewhere == "" && len(revoked.Ended) == 0 && revoked.Sessions == 0 {
		return nil, s.nothing(r)
	}
	s.log.Info("revoked by command", "client", r.Client, "source", r.Source, "grants", len(revoked.Ended),
		"sessions", revoked.Sessions)
	return revoked, nil
}

const keyRevoked, keyExpired = "revoked", "expired"

// keyOf returns in a word whether the client's key is still valid.
func (s *Server) keyOf(name string) string {
	client, ok := s.clients.Client(name)
	switch {
	case !ok:
		return "none"
	case !client.Revoked.IsZero():
		return keyRevoked
	case !client.Expires.IsZero() && !s.now().Before(client.Expires):
		return keyExpired
	}
	return "good"
}

// revocable refuses an unknown client: the name may be misspelt. A client whose file is gone can still have sessions.
func (s *Server) revocable(r control.Request) error {
	if r.Client == "" || len(s.seen.granted(r.Client)) > 0 || len(s.firewall.GrantsOf(r.Client, s.now())) > 0 {
		return nil
	}
	if _, known := s.clients.Client(r.Client); known {
		return nil
	}
	return denied("spa-keygen list shows the clients", fmt.Sprintf("there is no client %q, and it has nothing open",
		r.Client))
}

// end ends grants, after it has made sure that no packet on its way opens them again. If that fails they end anyway.
// Cuttable identifies their sessions.
func (s *Server) end(ctx context.Context, r control.Request) (ended, cuttable []firewall.Grant, err error) {
	s.line.Lock()
	defer s.line.Unlock()
	now := s.now()
	var unfloored error
	if r.Client == "" {
		unfloored = errors.Join(s.journal.SetFloor(ofAddress(anyone, r.Source), s.final(now)),
			s.journal.SetFloor(ofNetworks(anyone, r.Source), s.final(now)))
	} else {
		unfloored = s.setFloors(s.idsOf(r.Client), []string{everything}, s.final(now))
	}
	ended, err = s.firewall.Revoke(ctx, firewall.Match{Client: r.Client, Source: r.Source}, now)
	s.feed.Revoked(ended, "by spa-server revoke", now)
	return ended, s.cuttable(r, ended), errors.Join(err, unfloored)
}

// idsOf returns the ids that packets of the client may have; if its file is gone or has a mistake, those that they had.
func (s *Server) idsOf(name string) []keys.ID {
	ids := s.seen.ids(name)
	if client, ok := s.clients.Client(name); ok {
		ids = append(ids, client.IDs()...)
	}
	return ids
}

// cuttable returns what identifies the sessions to cut: the grants that ended now and earlier ones. For an address
// that is everything guarded, for a client what is remembered.
func (s *Server) cuttable(r control.Request, ended []firewall.Grant) []firewall.Grant {
	if r.Client != "" {
		return append(ended, s.placed(s.seen.granted(r.Client))...)
	}
	ended = append(ended, firewall.Grant{Source: r.Source, Ports: s.config.Guarded()})
	for _, service := range s.config.Services {
		ended = append(ended, firewall.Grant{Source: r.Source, Ports: service.Ports, To: service.Addresses})
	}
	return ended
}

// placed returns the grants with the addresses of their services.
func (s *Server) placed(gs []firewall.Grant) []firewall.Grant {
	for i := range gs {
		for _, service := range s.config.Services {
			if service.Name == gs[i].Service {
				gs[i].To = service.Addresses
			}
		}
	}
	return gs
}

// nothing returns the error that there was nothing to end.
func (s *Server) nothing(r control.Request) error {
	who, hint := r.Client, ""
	if who == "" {
		who = r.Source.String()
	}
	switch {
	case !r.Cut:
		hint = "sessions outlive their grants: --cut ends sessions too"
	case r.Client != "":
		hint = "sessions from before " + s.since.Local().Format(time.DateTime) +
			", when this server started, are known only by address: spa-server revoke ADDRESS --cut ends them"
		if s.audit.InJournal() {
			hint += "; the addresses: journalctl -o json SPA_CLIENT=" + r.Client
		}
		if file := s.audit.Path(); file != "" {
			hint += fmt.Sprintf("; the addresses: grep '\"client\":\"%s\"' %s", r.Client, quote.Shell(file))
		}
	}
	if key := s.keyOf(r.Client); key == keyRevoked || key == keyExpired {
		who += ", and its key is " + key
	}
	return denied(hint, "nothing is open for "+who)
}
