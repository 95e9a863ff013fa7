package server

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/lab"
	"sallyport/spa/recovery"
)

func (b *bench) usesFile() string { return filepath.Join(b.s.config.Dir, config.RecoveryFile) }

// limit makes alice a recovery client, as spa-keygen does.
func (b *bench) limit(uses int) {
	b.Helper()
	lab.Must(b, recovery.Add(b.usesFile(), b.client.ID, uses))
	b.enrol(func(c *keys.Client) { c.Recovery = uses })
	b.s.refreshUses()
}

// restart opens the counts anew, as after kill -9: the book is not closed.
func (b *bench) restart() {
	b.s.uses = openBook(b.s.config.Dir)
	b.s.verifyUses()
}

// TestRecoveryLaw: however requests, retries, copies, closes, refusals, restarts, reloads and changes of the client's
// file follow each other, a recovery key with N uses has at most N requests granted, and each is in the audit log.
func TestRecoveryLaw(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		b := newBench(t)
		n := 1 + r.IntN(4)
		b.limit(n)
		granted := map[[16]byte]bool{}
		var last spa.Request
		for range 30 {
			b.at = b.at.Add(time.Duration(1 + r.IntN(5000)*int(time.Millisecond)))
			switch r.IntN(10) {
			case 0:
				b.restart()
			case 1: // the file is edited: more uses, or it is an ordinary client's
				b.enrol(func(c *keys.Client) { c.Recovery = []int{0, 100, n}[r.IntN(3)] })
				b.s.refreshUses()
			case 2:
				if last.ID != [16]byte{} {
					last.Time = b.at
					b.take(last)
				}
			case 3:
				b.take(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeClose, Time: b.at,
					Services: []service.Service{{Name: "ssh"}}})
			case 4:
				b.ask("nothing") // refused, and so no use
			case 5: // killed between the use and its outcome: the same request is decided again
				last = spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: b.at,
					Services: []service.Service{{Name: "ssh"}}}
				p := arriving(b.seal(last))
				knock := lab.Value(spa.Open(p.Data, &b.s.identity, b.s.clients, b.at))(t)
				_, err := b.s.journal.Admit(entry(&knock, p.From.Addr()), b.at)
				lab.Must(t, err)
				_ = b.s.takeUse(&audit.Event{Time: b.at, From: p.From, Client: "alice", Knock: &knock}, false)
				b.restart()
				b.at = b.at.Add(time.Millisecond)
				last.Time = b.at
				b.take(last)
			default:
				last = b.ask("ssh")
			}
			if b.event.Verdict == audit.Granted {
				granted[b.event.Knock.Request.ID] = true
			}
			count, ok := b.s.uses.Count(b.client.ID)
			if len(granted) > n || !ok || count.Used < len(granted) {
				t.Fatalf("seed %d: %d granted of %d, counted %+v", seed, len(granted), n, count)
			}
		}
		text := string(lab.Value(os.ReadFile(filepath.Join(b.s.config.Dir, "audit")))(t))
		if got := strings.Count(text, `"result":"used"`); got < len(granted) {
			t.Errorf("seed %d: %d alarms for %d uses:\n%s", seed, got, len(granted), text)
		}
	}
}

// TestRecoveryIsExact: without accidents a key has exactly its uses; neither refusals, retries nor closes are uses.
func TestRecoveryIsExact(t *testing.T) {
	b, said := newBench(t), &lines{}
	b.s.log = slog.New(witness{slog.DiscardHandler, said.add})
	b.limit(2)
	lab.Must(t, b.s.mayConfirm("alice"))
	for i, want := range []spa.Status{spa.Granted, spa.Granted, spa.ReasonNoUses, spa.ReasonNoUses} {
		b.ask("nothing")
		r := b.ask("ssh")
		if b.event.Receipt.Status != want {
			t.Errorf("use %d: got %v, want %v", i+1, b.event.Receipt.Status, want)
		}
		r.Time = b.at.Add(time.Millisecond)
		b.take(r)
		if b.event.Receipt.Status != want {
			t.Errorf("its retry: got %v, want %v", b.event.Receipt.Status, want)
		}
		b.at = b.at.Add(time.Second)
	}
	if err := b.s.mayConfirm("alice"); !errors.Is(err, ErrNoRecovery) {
		t.Errorf("a client without uses may confirm the guard: %v", err)
	}
	if !said.has("RECOVERY KEY USED") || !said.has("RECOVERY KEY REFUSED") {
		t.Error("the log has no alarm")
	}
	if m := b.s.recoverySample(); m.Used != 2 || m.Refused != 2 || m.Keys != 1 || m.Spent != 1 {
		t.Errorf("counted %+v", m)
	}
	if list := b.s.recoveryStatus(); len(list) != 1 || list[0].Left != 0 || list[0].Uses != 2 || list[0].Last.IsZero() {
		t.Errorf("status has %+v", list)
	}
}

// TestRecoveryCountLost: without the file, or with a copy of it, a recovery key is refused, and other clients are not.
func TestRecoveryCountLost(t *testing.T) {
	for name, lose := range map[string]func(b *bench, path string){
		"removed": func(b *bench, path string) { lab.Must(b, os.Remove(path)) },
		"older": func(b *bench, path string) {
			older := lab.Value(os.ReadFile(path))(b)
			b.ask("ssh")
			lab.Must(b, os.Remove(path))
			lab.Must(b, os.WriteFile(path, older, 0o600))
		},
		"older, written over it": func(b *bench, path string) {
			older := lab.Value(os.ReadFile(path))(b)
			b.ask("ssh")
			lab.Must(b, os.WriteFile(path, older, 0o600))
		},
		"unreadable": func(b *bench, path string) { lab.Must(b, os.WriteFile(path, []byte("a letter"), 0o600)) },
	} {
		b := newBench(t)
		b.limit(3)
		lose(b, b.usesFile())
		b.restart()
		if b.ask("ssh"); b.event.Receipt.Status != spa.ReasonNoUses {
			t.Errorf("%s: got %v", name, b.event.Receipt.Status)
		}
		if list := b.s.recoveryStatus(); len(list) != 1 || list[0].Lost == "" {
			t.Errorf("%s: status has %+v", name, list)
		}
		b.enrol(func(c *keys.Client) { c.Recovery = 0 }) // by root, on purpose
		if b.ask("ssh"); b.event.Receipt.Status != spa.Granted {
			t.Errorf("%s: an ordinary client: %v", name, b.event.Receipt.Status)
		}
	}
}

// TestRecoveryRefusedStartsNothing: a refused recovery key leaves no program that is due.
func TestRecoveryRefusedStartsNothing(t *testing.T) {
	b := newBench(t)
	b.rule(func(c *config.Config) {
		s := config.NewService("act")
		s.Action = config.Action{Run: []string{"/usr/bin/true"}, User: "root", Timeout: time.Minute}
		c.Services = append(c.Services, s)
	})
	b.limit(1)
	b.ask("ssh")
	b.enrol(func(c *keys.Client) { c.Allow, c.Recovery = []string{"act"}, 1 })
	file := b.withActions()
	before := lab.Value(os.ReadFile(file))(t)
	b.ask("act")
	if b.event.Receipt.Status != spa.ReasonNoUses {
		t.Fatalf("got %v (%v)", b.event.Receipt.Status, b.event.Err)
	}
	if after := lab.Value(os.ReadFile(file))(t); !bytes.Equal(before, after) {
		t.Error("the file has a program that is due")
	}
}

// TestRecoveryUnlimitedAtOnce: a key stays limited if the line that limits it is taken out of the client's file before
// the key was ever used.
func TestRecoveryUnlimitedAtOnce(t *testing.T) {
	b := newBench(t)
	lab.Must(t, recovery.Add(b.usesFile(), b.client.ID, 1))
	for _, uses := range []int{1, 0} {
		c := *b.client
		c.Recovery = uses
		lab.Must(t, keys.WriteClient(b.s.config.Dir, &c, false))
		lab.Must(t, b.s.reloadClient(t.Context(), "alice"))
	}
	b.at = b.at.Add(time.Minute) // past the floor of the change
	for _, want := range []spa.Status{spa.Granted, spa.ReasonNoUses} {
		if b.ask("ssh"); b.event.Receipt.Status != want {
			t.Errorf("got %v (%v), want %v", b.event.Receipt.Status, b.event.Err, want)
		}
	}
}
