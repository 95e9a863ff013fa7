package etcd

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// partitioned is set in the process of TestPartition that runs in a network namespace.
const partitioned = "SALLYPORT_TEST_PARTITIONED"

// TestPartition cuts the store that leads the others off from them, while members still reach all three. Members that
// write and read notice no more than a pause.
func TestPartition(t *testing.T) {
	if os.Getenv(partitioned) != "" {
		partition(t)
		return
	}
	lab.NeedRoot(t)
	lab.NeedProgram(t, "nft", "apt-get install nftables")
	h := lab.New(t, "stores")[0]
	cmd := exec.Command(lab.Value(os.Executable())(t), "-test.run=^TestPartition$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), partitioned+"=1")
	out := new(lab.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	lab.Must(t, h.Start(cmd))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// partition is the process in the namespace.
func partition(t *testing.T) {
	c, o := newClusterAs(t, 3, 5000), newOffice(t)
	a, b := c.attach(t, o, "a"), c.attach(t, o, "b")
	defer alive(t, a, b)()
	load := &load{a: a, b: b, views: []*seen{watchShare(t, a), watchShare(t, b)}}
	s := c.open(t, o, "anyone")
	load.write(t)
	for range 2 {
		first := c.leader(t, s)
		prefer(first, a, b)
		nft(t, c.without(first))
		load.goOn(t)
		lab.Eventually(t, "another leads", func() bool { return c.leader(t, s) != first })
		nft(t, "delete table inet cut")
		load.goOn(t)
	}
}

// prefer has members use a store.
func prefer(i int, members ...*Member) {
	for _, m := range members {
		m.store.leave(m.store.current(), i)
	}
}

// goOn writes, and then spends so many packets that it would take too long if only each third waited for a store that
// does not answer.
func (l *load) goOn(t testing.TB) {
	t.Helper()
	l.write(t)
	l.agree(t)
	most := l.more + 250
	lab.Eventually(t, "all packets are spent", func() bool {
		l.more++
		m := []*Member{l.a, l.b}[l.more%2]
		spend(t, m, fmt.Sprint("more n", l.more), fmt.Sprint("more i", l.more), "t")
		return l.more == most
	})
}

// TestSilentStore: members go on if the store that they use still accepts what they send, but does not answer.
func TestSilentStore(t *testing.T) {
	c, o := newCluster(t, 3), newOffice(t)
	relay := c.relay(t, 0)
	c.endpoints[0] = "https://" + relay.addr
	a, b := c.attach(t, o, "a"), c.attach(t, o, "b")
	defer alive(t, a, b)()
	prefer(0, a, b)
	load := &load{a: a, b: b, views: []*seen{watchShare(t, a), watchShare(t, b)}}
	load.write(t)
	load.agree(t)
	relay.stall()
	load.goOn(t)
}

// without returns rules that drop what goes between a member and the other two.
func (c *cluster) without(i int) string {
	var ports []string
	for _, args := range c.args {
		ports = append(ports, peerPort(args))
	}
	return fmt.Sprintf("add table inet cut; add chain inet cut out { type filter hook output priority 0; }; "+
		"add rule inet cut out meta skgid %d tcp dport { %s } drop; add rule inet cut out tcp dport %s drop; "+
		"add rule inet cut out tcp sport %[3]s drop", c.groups+i, strings.Join(ports, ", "), ports[i])
}

// peerPort returns the port at which a member listens for the others.
func peerPort(args []string) string {
	for i, arg := range args {
		if arg == "--listen-peer-urls" {
			return args[i+1][strings.LastIndex(args[i+1], ":")+1:]
		}
	}
	return ""
}

func nft(t testing.TB, rules string) {
	t.Helper()
	if out, err := exec.Command("nft", rules).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
