package server

import (
	"context"
	"fmt"
	"slices"

	"sallyport/firewall"
	"sallyport/spa/server/control"
)

// everything names the floor of all services of a client: no service has this name.
const everything = "*"

// revoke ends what a client holds, or what is held for an address, now; the keys stay good. With Cut
// it ends sessions too, those that outlived their grants among them.
func (s *Server) revoke(parent context.Context, r control.Request) (*control.Revoked, error) {
	if (r.Client == "") != r.Source.IsValid() {
		return nil, denied("", "a revocation is for a client or for an address")
	}
	ctx := context.WithoutCancel(parent) // begun is done
	ended, err := s.end(ctx, r)
	if err != nil {
		return nil, err
	}
	revoked := &control.Revoked{Ended: shown(ended)}
	if r.Cut {
		if revoked.Sessions, err = s.firewall.Cut(ctx, s.cuttable(r, ended)); err != nil {
			return nil, denied("the grants have ended all the same", "sessions could not be cut: "+err.Error())
		}
	}
	if len(revoked.Ended) == 0 && revoked.Sessions == 0 {
		return nil, nothing(r)
	}
	s.log.Info("revoked by command", "client", r.Client, "source", r.Source, "grants", len(revoked.Ended), "sessions", revoked.Sessions)
	return revoked, nil
}

// end ends grants, after it has seen to it that no packet on its way opens anew what they opened.
func (s *Server) end(ctx context.Context, r control.Request) ([]firewall.Grant, error) {
	s.line.Lock()
	defer s.line.Unlock()
	now := s.now()
	held := slices.DeleteFunc(s.firewall.Grants(now), func(g firewall.Grant) bool {
		return r.Client != "" && g.Client != r.Client || r.Source.IsValid() && g.Source != r.Source
	})
	if _, known := s.clients.Client(r.Client); r.Client != "" && !known && len(held) == 0 {
		return nil, denied("spa-keygen list shows the clients", fmt.Sprintf("there is no client %q, and nothing is open for one", r.Client))
	}
	if r.Client != "" {
		if err := s.floor(r.Client, []string{everything}, now); err != nil {
			return nil, err
		}
	}
	for _, g := range held {
		if err := s.floor(g.Client, []string{g.Service}, now); err != nil {
			return nil, err
		}
	}
	ended, err := s.firewall.Revoke(ctx, firewall.Match{Client: r.Client, Source: r.Source}, now)
	s.hub.ended(ended, "revoked", "by spa-server revoke", now)
	return ended, err
}

// cuttable returns what sessions are looked for by: the grants that ended now, and those of before.
// Of an address that is all that is guarded, of a client what is remembered.
func (s *Server) cuttable(r control.Request, ended []firewall.Grant) []firewall.Grant {
	if r.Client != "" {
		return append(ended, s.seen.granted(r.Client)...)
	}
	s.line.Lock()
	defer s.line.Unlock()
	return append(ended, firewall.Grant{Source: r.Source, Ports: s.config.Guarded()})
}

// nothing says that there was nothing to end.
func nothing(r control.Request) error {
	who := r.Client
	if who == "" {
		who = r.Source.String()
	}
	hint := ""
	if !r.Cut {
		hint = "a session outlives the grant that it began by: --cut ends sessions too"
	}
	return denied(hint, "nothing is open for "+who)
}
