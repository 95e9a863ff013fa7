package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa"
	"sallyport/spa/lab"
	"sallyport/spa/sandbox"
	"sallyport/spa/server/control"
	"sallyport/spa/server/setup"
)

// agentProcess runs spa-fleet agent for a member, as the server's user.
func (e *etcd) agentProcess(t testing.TB, o *office) *os.Process {
	t.Helper()
	dir := e.configure(t, o)
	o.give(dir)
	o.give(filepath.Dir(e.ca))
	lab.Must(t, errors.Join(os.Chmod(e.ca, 0o644), os.Chmod(bin, 0o755)))
	uid, gid, err := sandbox.Becomes(setup.SystemUser)
	lab.Must(t, err)
	cmd := exec.Command(filepath.Join(bin, "spa-fleet"), "agent", "--config", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	lab.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process
}

// TestSharedSleep: members stop, as suspended machines do, while requests are on their way through them, until their
// sessions have ended and another member has answered a close. Awake, they let nobody in by what was asked before, and
// take part again.
func TestSharedSleep(t *testing.T) {
	lab.NeedRoot(t)
	store := newEtcd(t, 1)
	agents := make(map[*office]*os.Process)
	s := newTogether(t, 3, func(t testing.TB, o *office) { agents[o] = store.agentProcess(t, o) })
	bob := fleetClient("bob", "ssh")
	for _, o := range s.members {
		o.publish(2, time.Now(), s.ann, bob)
		o.inForce(2)
	}
	awake, asleep := s.members[0], s.members[1:]
	r := request()
	r.For = 10 * time.Minute
	awake.wantReceipt("192.0.2.2", awake.gateway.seal(r, s.by), s.by, spa.Granted)
	for _, o := range asleep {
		lab.Eventually(t, o.name+" to have the grant", func() bool { return len(o.grants()) == 1 })
	}
	late := make(map[string]func() *spa.Receipt)
	for _, o := range asleep {
		send := func(from string) {
			packet := o.gateway.seal(request(), s.by)
			conn := o.send("192.0.2.2", packet)
			late["to "+o.name+", "+from] = func() *spa.Receipt { return o.receipt(conn, packet, s.by, silence) }
		}
		lab.Must(t, agents[o].Signal(syscall.SIGSTOP))
		send("in its agent")
		lab.Eventually(t, "the server to wait for its agent", func() bool { return o.status().Fleet.Shared.Waiting == 1 })
		lab.Must(t, o.server.cmd.Process.Signal(syscall.SIGSTOP))
		send("in its socket")
	}
	closing := request()
	closing.Type = spa.TypeClose
	lab.Eventually(t, "the close to be answered without those that sleep", func() bool {
		closing.Time = time.Now()
		got := s.answers(awake.gateway.seal(closing, s.by), silence, awake)
		return len(got) == 1 && got[0].Status == spa.Closed
	})
	one, other := asleep[0], asleep[1]
	for _, p := range []*os.Process{agents[one], one.server.cmd.Process, other.server.cmd.Process, agents[other]} {
		lab.Must(t, p.Signal(syscall.SIGCONT))
	}
	s.ready()
	s.wantLate(late, bob)
}

// wantLate checks that requests of ann that were asked before a close are not granted, nor in force, and that all
// members grant bob's.
func (s *together) wantLate(late map[string]func() *spa.Receipt, bob *keys.Client) {
	s.t.Helper()
	for _, o := range s.members {
		by := o.sender(bob)
		o.wantReceipt("192.0.2.3", o.gateway.seal(request(), by), by, spa.Granted) // what came before is decided
	}
	for name, receipt := range late {
		if r := receipt(); r != nil && r.Status != spa.ReasonSuperseded {
			s.t.Errorf("a request %s, is answered: %v", name, r.Status)
		}
	}
	granted := 0
	for _, o := range s.members {
		if slices.ContainsFunc(o.grants(), func(g control.Grant) bool { return g.Client == "ann" }) {
			s.t.Errorf("%s has a grant of ann", o.name)
		}
		for _, verdict := range o.audited("ann") {
			if verdict == "granted" {
				granted++
			}
		}
	}
	if granted != 1 {
		s.t.Errorf("%d requests of ann were granted, want the one", granted)
	}
	s.wantAccess("after the sleep")
}
