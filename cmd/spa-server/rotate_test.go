package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// rotate gives alice a new key and returns the contents of its token.
func (g *gateway) rotate(args ...string) *keys.Profile {
	g.t.Helper()
	token := g.must("spa-keygen", append([]string{"rotate", "alice", "--config", g.dir}, args...)...)
	profile, err := keys.ParseToken(token)
	if err != nil {
		g.t.Fatalf("the token of spa-keygen rotate: %v", err)
	}
	return profile
}

// knockedBy makes new requests until one is answered, and returns the answer: the server notices a changed file a
// moment later.
func (g *gateway) knockedBy(s spa.Sender, r spa.Request) spa.Receipt {
	g.t.Helper()
	var receipt *spa.Receipt
	within := silence
	lab.Eventually(g.t, "the key to be answered", func() bool {
		r.Time = time.Now()
		receipt = g.exchange("192.0.2.2", g.seal(r, s), s, within)
		within *= 2
		return receipt != nil
	})
	return *receipt
}

// endsIn sets when the previous key in a file of the gateway ends, and returns that time.
func (g *gateway) endsIn(file string, d time.Duration) time.Time {
	g.t.Helper()
	end := time.Now().Add(d).UTC()
	g.rewrite(file, `until = [^ ]*`, "until = "+end.Format(time.RFC3339Nano))
	return end
}

// keysAudited returns the ids of the keys of a client's packets, in order.
func (g *gateway) keysAudited(client string) []string {
	var ids []string
	for _, event := range g.auditLines() {
		if event["client"] == client {
			ids = append(ids, event["key"].(string))
		}
	}
	return ids
}

// TestRotate: old and new key are valid side by side, for one client with one set of grants, until the old one expires;
// then it gets no answer, and is counted.
func TestRotate(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	old := sender(g.profile())
	r := request()
	r.For = 10 * time.Minute
	g.wantReceipt("192.0.2.2", g.seal(r, old), old, spa.Granted)

	current := sender(g.rotate("--overlap", "1h"))
	if receipt := g.knockedBy(current, request()); receipt.Status != spa.Granted {
		t.Errorf("the new key: %v", receipt.Status)
	}
	g.wantReceipt("192.0.2.2", g.seal(request(), old), old, spa.Granted)
	wantSaid(t, g.asked("status"), "alice: ", "uses its old key")
	want := []string{old.ID.String(), current.ID.String(), old.ID.String()}
	if ids := slices.Compact(g.keysAudited("alice")); !slices.Equal(ids, want) {
		t.Errorf("the audit log has the keys %v, want %v", ids, want)
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the grant of the old key lives on")

	end := g.endsIn("clients/alice.toml", time.Second)
	g.takeOver() // unless the server has already noticed it
	g.await(end)
	g.wantSilence(old, "the old key after its end")
	g.wantReceipt("192.0.2.2", g.seal(request(), current), current, spa.Granted)
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "the grant of the old key outlives it")
	lab.Eventually(t, "the old key to be counted", func() bool {
		return strings.Contains(g.server.log(), "× retired key")
	})

	closing := request()
	closing.Type = spa.TypeClose
	g.wantReceipt("192.0.2.2", g.seal(closing, current), current, spa.Closed)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the new key closes what the old one opened")
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantSilence(old, "after kill -9 the old key")
	g.knockedBy(current, request())
}

// wantSilence fails if a new request of the sender is answered.
func (g *gateway) wantSilence(s spa.Sender, what string) {
	g.t.Helper()
	if receipt := g.exchange("192.0.2.2", g.seal(request(), s), s, silence); receipt != nil {
		g.t.Errorf("%s is answered: %v", what, receipt.Status)
	}
}

// asked runs a command that queries the running server.
func (g *gateway) asked(command string) string {
	g.t.Helper()
	out, code := g.run(g.host, "spa-server", command, "--config", g.dir)
	if code != 0 {
		g.t.Fatalf("spa-server %s: exit %d\n%s", command, code, out)
	}
	return out
}

// TestRotateAtOnce: with no overlap the old key ends with the rotation, and its grants continue.
func TestRotateAtOnce(t *testing.T) {
	g := opened(t)
	old := sender(g.profile())
	heldBack := g.seal(request(), old)
	current := sender(g.rotate("--overlap", "0"))
	g.knockedBy(current, request())
	if receipt := g.exchange("192.0.2.2", heldBack, old, silence); receipt != nil {
		t.Errorf("a packet from before the rotation is answered: %v", receipt.Status)
	}
	g.wantSilence(old, "the old key")
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened before the rotation")
	out, code := g.open("--timeout", "500ms")
	if code != 4 {
		t.Errorf("alice with the old token: exit %d, want 4\n%s", code, out)
	}
}

// TestReplayAcrossRotation: packets spent with the old key stay spent, a command continues with the key that it began
// with, and closing counts for both keys.
func TestReplayAcrossRotation(t *testing.T) {
	g, old := freshGateway(t)
	r := request()
	r.For = 10 * time.Minute
	spent, heldBack := g.seal(r, old), g.seal(request(), old)
	first := g.wantReceipt("192.0.2.2", spent, old, spa.Granted)
	current := sender(g.rotate())
	g.knockedBy(current, request())

	inVain := func(when string) {
		t.Helper()
		if receipt := g.exchange("192.0.2.2", spent, old, silence); receipt != nil {
			t.Errorf("%s: the copy of a spent packet is answered: %v", when, receipt.Status)
		}
	}
	inVain("after the rotation")
	r.Time = time.Now()
	second := g.wantReceipt("192.0.2.2", g.seal(r, old), old, spa.Granted)
	if a, b := first.Time.Add(first.Services[0].For),
		second.Time.Add(second.Services[0].For); b.Sub(a).Abs() > 2*time.Millisecond {
		t.Errorf("the retry ends at %v, the first try at %v: want the same", b, a)
	}
	if verdicts := g.audited("alice"); verdicts[len(verdicts)-1] != "repeated" {
		t.Errorf("a retry with the old key: %v", verdicts)
	}

	closing := request()
	closing.Type = spa.TypeClose
	g.wantReceipt("192.0.2.2", g.seal(closing, current), current, spa.Closed)
	g.wantReceipt("192.0.2.2", heldBack, old, spa.ReasonSuperseded)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after a packet that was held back")
	g.server.stop(syscall.SIGKILL)
	g.start()
	inVain("after kill -9")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "at the end")
}

// TestRotateWhileDown: a server that starts with a rotated client knows both keys, the old one until its end.
func TestRotateWhileDown(t *testing.T) {
	g := opened(t)
	g.server.stop(syscall.SIGKILL)
	old := sender(g.profile())
	current := sender(g.rotate("--overlap", "1h"))
	g.start()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened before the rotation")
	g.wantReceipt("192.0.2.2", g.seal(request(), current), current, spa.Granted)
	g.wantReceipt("192.0.2.2", g.seal(request(), old), old, spa.Granted)
	g.must("spa-keygen", "revoke", "alice", "--config", g.dir)
	lab.Eventually(t, "the revocation to be taken", func() bool { return g.endedGrantOf("alice") })
	g.wantSilence(current, "the new key of a revoked client")
	g.wantSilence(old, "the old key of a revoked client")
	g.wantDark("192.0.2.2", "192.0.2.1:22", "revoked")
}

// TestRotateKilled: if spa-keygen is killed at any time, the file is the old or the new one, and the server follows it.
func TestRotateKilled(t *testing.T) {
	g := newGateway(t)
	g.start()
	path := filepath.Join(g.dir, "clients", "alice.toml")
	for i := range 12 {
		before := lab.Value(keys.ReadClient(path))(t)
		cmd := g.command("spa-keygen", "rotate", "alice", "--force", "--config", g.dir)
		lab.Must(t, cmd.Start())
		timer := time.AfterFunc(time.Duration(i)*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		after, err := keys.ReadClient(path)
		if err != nil {
			t.Fatalf("killed after %d ms: %v", i, err)
		}
		if after.ID != before.ID && (after.Previous == nil || after.Previous.ID != before.ID ||
			!after.Previous.Key.Equal(before.Key)) {
			t.Fatalf("killed after %d ms: the file has keys from neither before nor after", i)
		}
	}
	left := lab.Value(keys.ReadClient(path))(t)
	s := sender(g.profile())
	s.ID, s.Key = left.ID, left.Key
	g.knockedBy(s, request())
}

// TestRotateGate: two gate keys for a while, then one. Reports about a packet do not change.
func TestRotateGate(t *testing.T) {
	g := opened(t)
	alice := sender(g.profile())
	out := g.must("spa-keygen", "rotate-gate", "--overlap", "1h", "--config", g.dir)
	wantSaid(t, out, "there is a new gate key")
	bob := sender(g.enrol("bob", "ssh"))
	g.wantSilence(bob, "a token of the new gate key, before the server has it,")
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)

	g.asked("reload")
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	g.wantReceipt("192.0.2.3", g.seal(request(), bob), bob, spa.Granted)
	wantSaid(t, g.asked("status"), "two: the old one is good until", "clients that used it last: 1")
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened before")
	g.wantReceipt("192.0.2.2", g.seal(request(), alice), alice, spa.Granted)
	g.wantReceipt("192.0.2.3", g.seal(request(), bob), bob, spa.Granted)
	for line := range strings.Lines(g.asked("status")) {
		if of := strings.Contains(line, "alice: "); of != strings.Contains(line, "uses the old gate key") {
			t.Errorf("who uses the old gate key? %s", line)
		}
	}
	heldBack := g.seal(request(), alice)

	current := sender(g.rotate("--overlap", "1h"))
	g.knockedBy(current, request())
	if out := g.asked("status"); strings.Contains(out, "uses the old gate key") {
		t.Errorf("all have the new gate key, and status says\n%s", out)
	}
	mixed := alice // the old key behind the new gate: a client's keys are its own, through either gate
	mixed.Gate = current.Gate
	g.wantReceipt("192.0.2.2", g.seal(request(), mixed), mixed, spa.Granted)

	end := g.endsIn("gate.key", 2*time.Second)
	g.server.stop(syscall.SIGTERM)
	g.start()
	g.await(end)
	g.wantSilence(alice, "the old gate key after its end")
	if receipt := g.exchange("192.0.2.2", heldBack, alice, silence); receipt != nil {
		t.Errorf("a packet of the old gate key is answered after its end: %v", receipt.Status)
	}
	g.wantReceipt("192.0.2.2", g.seal(request(), current), current, spa.Granted)
	g.wantReceipt("192.0.2.3", g.seal(request(), bob), bob, spa.Granted)
}

// TestRotatedToken: the client imports the token, which updates its host.
func TestRotatedToken(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	g.start()
	g.mustOpen("--source", "192.0.2.2")
	token := g.must("spa-keygen", "rotate", "alice", "--overlap", "1h", "--config", g.dir)
	cmd := g.command("spa-client", "import", "--replace", "--config", g.home, "-")
	cmd.Stdin = strings.NewReader(token)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("spa-client import: %v\n%s", err, out)
	}
	g.mustOpen("--source", "192.0.2.2")
	ids := slices.Compact(g.keysAudited("alice")) // a request that is not answered soon is retried
	if want := g.profile().ID.String(); len(ids) != 2 || ids[1] != want || ids[0] == want {
		t.Errorf("the audit log has the keys %v, want a second that is %v", ids, want)
	}
	if strings.Contains(fmt.Sprint(g.server.log(), g.auditLines()), g.profile().Key.Reveal()) {
		t.Error("a key is in a log")
	}
}
