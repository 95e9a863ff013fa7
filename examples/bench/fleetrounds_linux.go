package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sallyport/keys"
)

// way is how bundles get to the gateways.
type way struct {
	name  string
	to    []string // flags of spa-fleet publish
	agent string   // lines in agent.toml; GATEWAY is the gateway's name
}

// compare measures both ways.
func (f *fleet) compare() error {
	dir, s := f.fresh("published"), f.store
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, w := range []way{
		{"directory, read every second", []string{"--to", dir},
			fmt.Sprintf("from = %q\nevery = \"1s\"\n", filepath.Join(dir, "GATEWAY.bundle"))},
		{"etcd", []string{"--to", "etcd://" + storeHost, "--ca", s.cert, "--cert", s.cert, "--key", s.key},
			fmt.Sprintf("from = \"etcd://%s\"\nfleet = \"%s\"\nca = %q\ncert = %q\nkey = %q\n", storeHost, f.id, s.cert,
				s.cert, s.key)},
	} {
		if err := f.measureWay(w); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	return nil
}

// measureWay measures rounds with all gateways, and then with one whose agent is awake: that one has the machine to
// itself.
func (f *fleet) measureWay(w way) error {
	if err := f.publish(w, new(tally)); err != nil {
		return err
	}
	if err := f.employ(w.agent); err != nil {
		return err
	}
	if err := f.allInForce(); err != nil {
		return err
	}
	f.say("%s: all gateways have their first bundle", w.name)
	all := &tally{who: fmt.Sprintf("%d gateways at once", f.gateways)}
	one := &tally{who: "one gateway, other agents stopped"}
	for range f.rounds {
		if err := f.round(w, f.members, all); err != nil {
			return err
		}
	}
	if err := f.weigh(w.name); err != nil {
		return err
	}
	if err := f.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for range f.rounds {
		if err := f.round(w, f.members[:1], one); err != nil {
			return err
		}
	}
	f.put(w.name, all, one)
	return errors.Join(f.signal(syscall.SIGCONT), f.allInForce())
}

// signal signals all agents but the first.
func (f *fleet) signal(s os.Signal) (err error) {
	for _, m := range f.members[1:] {
		err = errors.Join(err, m.agent.cmd.Process.Signal(s))
	}
	return err
}

// tally is what some rounds took.
type tally struct {
	who                  string
	begun, ended         time.Time // of the last publish
	revoke, publish, cpu times     // the commands, and the CPU time of publish
	memory               int64     // of publish, at most
	begin, end           times     // from the start and the end of publish until a gateway refuses
	takeOver             times     // the part of it since the agent has put the bundle in place
	cpuServer            times     // of the first gateway
}

func (f *fleet) publish(w way, t *tally) error {
	cmd := f.spaFleet(append([]string{"publish"}, w.to...)...)
	t.begun = time.Now()
	if err := f.hub.runClient(cmd); err != nil {
		return err
	}
	t.ended = time.Now()
	f.serial++
	t.publish = append(t.publish, t.ended.Sub(t.begun))
	t.cpu = append(t.cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	t.memory = max(t.memory, 1024*cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)
	return nil
}

// inForce waits until a gateway has taken over the last bundle, and returns when that was: from then on it refuses the
// client. Both daemons log with this machine's clock.
func (f *fleet) inForce(m *member) (placed, since time.Time, err error) {
	if placed, err = f.await(m.agent, fmt.Sprintf(`in place" serial=%d `, f.serial)); err != nil {
		return placed, since, err
	}
	since, err = f.await(&m.server, fmt.Sprintf(`taken over" serial=%d `, f.serial))
	return placed, since, err
}

func (f *fleet) allInForce() error {
	for _, m := range f.members {
		if _, _, err := f.inForce(m); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// sampled is at how many gateways clients knock in a round.
const sampled = 5

// round revokes a client, and waits until gateways refuse it.
func (f *fleet) round(w way, members []*member, t *tally) error {
	stays, leaves := f.clients[0], f.clients[len(f.clients)-1]
	f.clients = f.clients[:len(f.clients)-1]
	if err := errors.Join(f.give(stays), f.give(leaves)); err != nil {
		return err
	}
	sample := members[:min(len(members), sampled)]
	if err := f.letIn(sample, leaves, true); err != nil {
		return err
	}
	before, err := sample[0].server.use()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := must(f.spaFleet("client", "revoke", leaves.Client, "--yes")); err != nil {
		return err
	}
	t.revoke = append(t.revoke, time.Since(begun))
	if err := f.publish(w, t); err != nil {
		return err
	}
	for _, m := range members {
		placed, since, err := f.inForce(m)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		t.begin, t.end = append(t.begin, since.Sub(t.begun)), append(t.end, since.Sub(t.ended))
		t.takeOver = append(t.takeOver, since.Sub(placed))
	}
	after, err := sample[0].server.use()
	if err != nil {
		return err
	}
	t.cpuServer = append(t.cpuServer, after.since(before).cpu)
	f.say("%s, %s: publish %v, refused %v after it", w.name, t.who, t.ended.Sub(t.begun).Round(ms), slices.Max(t.end))
	return errors.Join(f.letIn(sample, leaves, false), f.letIn(sample, stays, true))
}

// letIn knocks as a client, and returns an error unless the gateways let it in, or do not.
func (f *fleet) letIn(members []*member, p *keys.Profile, want bool) error {
	for _, m := range members {
		granted, err := f.knock(m, p)
		if err != nil {
			return err
		}
		if granted != want {
			return fmt.Errorf("%s lets %s in: %v, want %v", m.name, p.Client, granted, want)
		}
	}
	return nil
}

// give imports a client's token.
func (f *fleet) give(p *keys.Profile) error {
	cmd := f.spaClient(p, "import", "--replace", "-")
	cmd.Stdin = strings.NewReader(p.Token())
	return must(cmd)
}

func (f *fleet) spaClient(p *keys.Profile, args ...string) *exec.Cmd {
	args = append([]string{"--config", filepath.Join(f.dir, "home-"+p.Client)}, args...)
	return exec.Command(filepath.Join(f.bin, "spa-client"), args...)
}

// noAnswer is spa-client's exit code when the gateway does not answer.
const noAnswer = 4

// knock reports whether a gateway answers a client that the port is open.
func (f *fleet) knock(m *member, p *keys.Profile) (bool, error) {
	err := f.hub.runClient(f.spaClient(p, "open", "ssh", "--host", "prod/"+m.name, "--timeout", "2s"))
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == noAnswer {
		return false, nil
	}
	return err == nil, err
}

// put adds the rows of a way.
func (f *fleet) put(column string, all, one *tally) {
	put := func(what, cell string) { f.results.put(what, column, cell) }
	put("spa-fleet client revoke, s", seconds(append(all.revoke, one.revoke...)))
	put("spa-fleet publish, s; its CPU, s; its memory", fmt.Sprintf("%s; %s; %s", seconds(append(all.publish,
		one.publish...)), seconds(append(all.cpu, one.cpu...)), megabytes(uint64(max(all.memory, one.memory)))))
	for _, t := range []*tally{all, one} {
		put(t.who+": start of publish until refused, s", seconds(t.begin))
		put(t.who+": end of publish until refused, s", seconds(t.end))
		put(t.who+": bundle in place until refused, s; CPU of the server, s", seconds(t.takeOver)+"; "+seconds(t.cpuServer))
	}
}

// seconds is the median, p99 and the largest of some times, and their number.
func seconds(t times) string {
	return fmt.Sprintf("%.2f / %.2f / %.2f of %d", t.at(0.5).Seconds(), t.at(0.99).Seconds(), t.at(1).Seconds(), len(t))
}

// weigh measures the bundle and the processes of the first gateway, and etcd.
func (f *fleet) weigh(column string) error {
	m := f.members[0]
	var memory, size []string
	for _, d := range []*daemon{m.agent, &m.server, &f.store.daemon} {
		n, err := number(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid), "\nVmRSS:")
		if err != nil {
			return err
		}
		memory = append(memory, megabytes(1024*n))
	}
	for _, path := range []string{m.bundle(), filepath.Join(f.store.data, "member", "snap", "db")} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		size = append(size, fmt.Sprint(info.Size()))
	}
	f.results.put(fmt.Sprintf("after %d publishes this way: memory (VmRSS) of an agent; a server; etcd", f.rounds+1),
		column, strings.Join(memory, "; "))
	f.results.put(fmt.Sprintf("a bundle with %d clients, bytes; etcd's database, not compacted, bytes",
		f.fleetSizes.clients), column, strings.Join(size, "; "))
	return nil
}
