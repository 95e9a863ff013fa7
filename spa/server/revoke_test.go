package server

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/server/control"
)

// TestRevokeWithoutJournal: the grants end, and the error reports that packets on their way may open them again.
func TestRevokeWithoutJournal(t *testing.T) {
	for _, r := range []control.Request{{Client: "alice"}, {Source: netip.MustParseAddr("192.0.2.2")}} {
		b := newBench(t)
		b.s.process(context.Background(), b.packet(0))
		b.s.journal.Close()
		_, err := b.s.revoke(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), "ended anyway: 1") {
			t.Errorf("got %v", err)
		}
		if held := b.s.firewall.Grants(b.at); len(held) != 0 {
			t.Errorf("still held: %v", held)
		}
	}
}

// TestCutOfGone: revoke looks for sessions of a client whose file is gone, but not of one that never existed.
func TestCutOfGone(t *testing.T) {
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	lab.Must(t, os.Remove(filepath.Join(b.s.config.Dir, "alice.toml")))
	b.s.shutOut(t.Context(), "alice", b.s.reloadClient(t.Context(), "alice"))
	for client, want := range map[string]string{"alice": "nothing is open for alice",
		"nobody": `there is no client "nobody"`} {
		_, err := b.s.revoke(t.Context(), control.Request{Client: client, Cut: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestRevokeMapped: an address counts in every spelling, and also for packets on their way.
func TestRevokeMapped(t *testing.T) {
	b := newBench(t)
	held := b.packet(-time.Second)
	b.s.process(context.Background(), b.packet(0))
	if r, err := b.s.revoke(t.Context(), control.Request{Source: netip.MustParseAddr("::ffff:192.0.2.2")}); err != nil ||
		len(r.Ended) != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	b.arrive(held)
	if got := b.event.Receipt.Status; got != spa.ReasonSuperseded {
		t.Errorf("an earlier packet: %v", got)
	}
}

// TestRevokeOneOfTwo: a revocation that names neither client nor address, or both, ends nothing.
func TestRevokeOneOfTwo(t *testing.T) {
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	for _, r := range []control.Request{{}, {Client: "alice", Source: netip.MustParseAddr("192.0.2.2")}} {
		if got, err := b.s.revoke(t.Context(), r); err == nil {
			t.Errorf("%+v: got %+v", r, got)
		}
	}
	if held := b.s.firewall.Grants(b.at); len(held) != 1 {
		t.Errorf("held: %v", held)
	}
}

// TestCuttable: revoke looks for sessions wherever a grant can have let them in: for an address behind each guarded
// port, here or at the service's address; for a client behind its grants since the start.
func TestCuttable(t *testing.T) {
	f := newFinal(t, 0, 0)
	for _, services := range asks {
		f.open("192.0.2.2", services...)
	}
	f.open("192.0.2.3", "web")
	bob := f.command("bob", spa.TypeOpen, f.at, "ssh")
	f.deliver(f.packet(bob, f.at, "192.0.2.2"), f.at)
	given := f.s.firewall.GrantsOf("alice", f.at)
	guarded := config.Service{Ports: f.s.config.Guarded()}
	for name, test := range map[string]struct {
		request control.Request
		want    func(source netip.Addr, at netip.Addr, p service.Ports) bool
	}{
		"address": {control.Request{Source: netip.MustParseAddr("192.0.2.2")},
			func(source, at netip.Addr, p service.Ports) bool {
				if source != netip.MustParseAddr("192.0.2.2") {
					return false
				}
				if at.IsValid() {
					return at == inside && overlap(parsed(t, shared["inner"]...), []service.Ports{p})
				}
				return overlap(guarded.Ports, []service.Ports{p})
			}},
		"client": {control.Request{Client: "alice"}, func(source, at netip.Addr, p service.Ports) bool {
			return slices.ContainsFunc(given, func(g firewall.Grant) bool {
				return g.Source == source && slices.Equal(g.To, to(at)) && overlap(g.Ports, []service.Ports{p})
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			all := f.s.firewall.Grants(f.at)
			ends := slices.DeleteFunc(slices.Clone(all), func(g firewall.Grant) bool {
				return g.Client != test.request.Client && g.Source != test.request.Source
			})
			for when, ended := range map[string][]firewall.Grant{"of grants that end now": ends,
				"of those that ended before": nil} {
				cuttable := f.s.cuttable(test.request, ended)
				for _, source := range []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")} {
					for _, at := range []netip.Addr{{}, inside} {
						for port := uint16(1); port < 9000; port++ {
							p := service.Ports{Proto: service.TCP, Low: port, High: port}
							got := slices.ContainsFunc(cuttable, func(g firewall.Grant) bool {
								return g.Source == source && slices.Equal(g.To, to(at)) && overlap(g.Ports, []service.Ports{p})
							})
							if want := test.want(source, at, p); got != want {
								t.Fatalf("%s: sessions from %v to %v %v are looked for: %v, want %v", when, source, at, p, got, want)
							}
						}
					}
				}
			}
		})
	}
}

func to(at netip.Addr) []netip.Addr {
	if !at.IsValid() {
		return nil
	}
	return []netip.Addr{at}
}

// TestRevokedIsTold: watchers see each grant that a revocation ended.
func TestRevokedIsTold(t *testing.T) {
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	w, _ := b.s.feed.Join()
	defer b.s.feed.Leave(w)
	b.s.feed.Expect(b.s.firewall.Grants(b.at))
	_, err := b.s.revoke(t.Context(), control.Request{Client: "alice"})
	lab.Must(t, err)
	if len(w.Lines) != 1 {
		t.Fatalf("watchers got %d lines", len(w.Lines))
	}
	if d := (<-w.Lines).Decision; d.Verdict != "revoked" || d.Client != "alice" || d.Services[0] != "ssh" ||
		d.Source != netip.MustParseAddr("192.0.2.2") {
		t.Errorf("watchers got %+v", d)
	}
	if b.s.feed.TellEnded(b.at.Add(time.Hour)); len(w.Lines) != 0 {
		t.Errorf("and of its end again: %+v", (<-w.Lines).Decision)
	}
}

// TestNothingToRevoke: the error names the client or address, and the hint what to try next that was not tried already.
func TestNothingToRevoke(t *testing.T) {
	b := newBench(t)
	address := netip.MustParseAddr("192.0.2.9")
	for _, test := range []struct {
		request   control.Request
		who, hint string // empty: nothing to try
	}{
		{control.Request{Client: "alice"}, "alice", "--cut ends sessions too"},
		{control.Request{Source: address}, "192.0.2.9", "--cut ends sessions too"},
		{control.Request{Client: "alice", Cut: true}, "alice", "spa-server revoke ADDRESS --cut"},
		{control.Request{Source: address, Cut: true}, "192.0.2.9", ""},
	} {
		_, err := b.s.revoke(t.Context(), test.request)
		denied, ok := errors.AsType[*control.Denied](err)
		if !ok || denied.Text != "nothing is open for "+test.who || !strings.Contains(denied.Hint, test.hint) ||
			(denied.Hint == "") != (test.hint == "") {
			t.Errorf("%+v: got %#v", test.request, err)
		}
	}
}

// TestWhereTheAddressesAre: the hint names the audit log, if there is one, for addresses that the server does not
// remember.
func TestWhereTheAddressesAre(t *testing.T) {
	for _, file := range []string{"", filepath.Join(t.TempDir(), "audit")} {
		b := newBench(t)
		log, err := audit.Open(file, b.s.log)
		lab.Must(t, err)
		t.Cleanup(func() { log.Close() })
		b.s.audit = log
		_, err = b.s.revoke(t.Context(), control.Request{Client: "alice", Cut: true})
		denied, ok := errors.AsType[*control.Denied](err)
		if !ok || strings.Contains(denied.Hint, "grep") != (file != "") || !strings.Contains(denied.Hint, file) {
			t.Errorf("the log is %q: got %#v", file, err)
		}
	}
}

// TestRevokeOfForgotten: a client that is unknown since the start, and whose file is gone, may still hold grants of an
// earlier server.
func TestRevokeOfForgotten(t *testing.T) {
	b := newBench(t)
	b.s.process(context.Background(), b.packet(0))
	b.s.seen, b.s.clients = newSightings(), &keys.Registry{}
	if r, err := b.s.revoke(t.Context(), control.Request{Client: "alice"}); err != nil || len(r.Ended) != 1 {
		t.Errorf("got %+v, %v, want its grant ended", r, err)
	}
}
