package nftables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/keeper"
	"sallyport/firewall/internal/nl"
	"sallyport/keys/service"
)

// Flags of a table, from linux/netfilter/nf_tables.h. The owner is a socket: only over it can the table be changed or
// flushed, and the table is deleted with it (Linux 5.12). With TablePersist the table stays, without an owner, and
// another socket can become its owner (Linux 6.9).
const (
	TableOwner   = 2
	TablePersist = 4
)

const (
	// RelayName is the standby table: it guards while our table is exchanged.
	RelayName = "spa-relay"
	// wakeName is a table that is made and deleted to wake a daemon.
	wakeName = "spa-wake"
)

// prepareToOwn finds out whether the table can have an owner, and starts its keeper.
func (n *Backend) prepareToOwn() error {
	var err error
	if n.lock, err = keeper.OpenFile(n.Spec.State, n.Spec.User, true); err != nil {
		return fmt.Errorf("opening the lock of the guard's keeper: %w", err)
	}
	if n.Spec.Persist != guard.PersistOwner || n.Spec.Plain || n.Spec.Mode != guard.ModeGuard {
		return nil
	}
	if n.own, err = n.canOwn(); err != nil || !n.own {
		return err
	}
	if n.Keeper, err = keeper.Start(n.lock, n.Socket); err != nil {
		// The guard works without a keeper, but any tool can flush it while no daemon runs.
		n.Lacks = append(n.Lacks, "a keeper for the guard while spa-server is not running ("+err.Error()+")")
	}
	return nil
}

// Persists reports whether a keeper makes sure that the table always has an owner.
func (n *Backend) Persists() bool { return n.own && n.Keeper.Lives() }

// KeeperGone reports whether the keeper has ended or was killed.
func (n *Backend) KeeperGone() bool { return n.own && n.Keeper.Gone() }

// AwaitKeeper waits until the keeper has ended. It returns false if ctx ended first or there is no keeper.
func (n *Backend) AwaitKeeper(ctx context.Context) bool { return n.Keeper.Await(ctx) }

// canOwn probes whether the kernel supports persistent tables, in a batch that always fails as a whole.
func (n *Backend) canOwn() (bool, error) {
	var b batch
	flags := uint32(TableOwner | TablePersist)
	b.table(unix.NFT_MSG_NEWTABLE, "spa-probe", &flags)
	b.table(unix.NFT_MSG_DELTABLE, "spa-probe-absent", nil)
	switch err := b.send(n.Socket); {
	case errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return false, nil
	default:
		return false, explain("probing whether a table can have an owner", err)
	}
}

// CanPersist reports whether the kernel supports a table that stays when its owner ends.
func CanPersist() bool {
	conn, socket, err := Dial()
	if err != nil {
		return false
	}
	n := &Backend{Conn: conn, Socket: socket}
	ok, err := n.canOwn()
	return errors.Join(err, n.Close()) == nil && ok
}

// Flags returns the flags that our table should have.
func (n *Backend) Flags() uint32 {
	if n.own {
		return TableOwner | TablePersist
	}
	return 0
}

// inPlace reports whether the existing table can become ours without deleting it: the kernel gives an owner only to a
// persistent table, and removes no flags.
func (n *Backend) inPlace(t TableState) bool {
	owned := t.Flags&TableOwner != 0 && t.owner == n.Socket.PID()
	orphan := t.Flags&(TableOwner|TablePersist) == TablePersist
	if n.own {
		return owned || orphan
	}
	return t.Flags&(TableOwner|TablePersist) == 0
}

func (n *Backend) Load(spec guard.Spec, p guard.Plan) error {
	if err := n.canForward(spec); err != nil {
		return err
	}
	before, objects := n.Spec, n.Objects
	n.Spec = spec
	if !slices.EqualFunc(objects.spans, spec.Spans, func(n spanned, s guard.Span) bool { return n.Span == s }) {
		n.Objects = NewObjects(spec.Size, spec.Spans...)
	}
	err := n.loadPlan(p)
	if err != nil {
		n.Spec, n.Objects = before, objects
	}
	return err
}

func (n *Backend) loadPlan(p guard.Plan) error {
	if err := n.checkOnce(); err != nil {
		return err
	}
	t, err := n.present()
	if err != nil {
		return err
	}
	// This load also repairs all changes so far.
	if err := nl.Drain(n.Events); err != nil {
		return explain("discarding earlier changes", err)
	}
	if n.learned, err = n.readLearned(t); err != nil {
		return err
	}
	if t.Handle == 0 || t.Handle != n.known {
		n.meet(p.Leases)
	}
	if err := errors.Join(n.place(t, p), n.EndRelay()); err != nil {
		return err
	}
	if t, err := n.Table(); err == nil {
		n.known = t.Handle // without a handle the table is recognized only by its marker
	}
	n.Keeper.Hold()
	return nil
}

// readLearned reads what the rules of the table in place have learned. Tables of earlier versions have none of these
// sets.
func (n *Backend) readLearned(t TableState) (map[string][]nft.SetElement, error) {
	learned := make(map[string][]nft.SetElement)
	if t.Handle == 0 {
		return learned, nil
	}
	for _, s := range n.Objects.Learned() {
		es, err := n.Elements(s)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, explain("reading what the guard has learned", err)
		}
		for _, e := range es {
			learned[s.Name] = append(learned[s.Name], nft.SetElement{Key: e.Key, Timeout: max(e.Expires, time.Millisecond)})
		}
	}
	return learned, nil
}

// meet takes the peers of grants for admitted ones, because another tool may have deleted @met: once the grants have
// ended, a UDP server begins no flow with them. The set must not overflow.
func (n *Backend) meet(ls []guard.Lease) {
	add := func(l guard.Lease, port uint16) {
		met := n.Objects.met4
		if l.Source.Is6() {
			met = n.Objects.met6
		}
		if es := n.learned[met.Name]; len(es) < int(met.Size) {
			n.learned[met.Name] = append(es, nft.SetElement{Key: PortKey(l.Source.AsSlice(), l.Proto, port),
				Timeout: guard.Remembered})
		}
	}
	for _, l := range ls {
		if l.Bits != 0 || l.Proto != service.UDP {
			continue
		}
		add(l, l.Port)
		for _, leg := range guard.Legs(n.Spec.Forwards) {
			if !l.To.IsValid() && leg.Proto == l.Proto && leg.Port == l.Port {
				add(l, leg.To.Port())
			}
		}
	}
}

// place puts the guard where t is. It exchanges the rules inside the existing chains, because if one chain replaced
// another of the same priority, a packet between them could pass both. It replaces the whole table only if that is
// impossible, or fails because another tool or version changed the chains.
func (n *Backend) place(t TableState, p guard.Plan) error {
	if t.Handle == 0 || t.Handle != n.known {
		p.Spend = true
	}
	if t.Handle == 0 {
		err := n.Make(n.Objects, p, n.Flags(), false)
		if err != nil && n.known == 0 {
			// A partial guard without a daemon would shut everybody out.
			err = errors.Join(err, n.DeleteTable(TableName))
		}
		return err
	}
	if n.inPlace(t) {
		if err := n.Make(n.Objects, p, n.Flags(), false); err == nil {
			return nil
		}
	}
	p.Spend = true
	return n.BehindRelay(p, func() error {
		if err := n.release(); err != nil {
			return err
		}
		return n.Make(n.Objects, p, n.Flags(), true)
	})
}

// BehindRelay calls do, during which packets may fall between two chains or the table may briefly have no owner,
// while a second guard stands beside ours. The kernel deletes that standby table with our socket in any case; the
// caller ends it with EndRelay.
func (n *Backend) BehindRelay(p guard.Plan, do func() error) error {
	can, err := n.canOwn()
	if err != nil {
		return err
	}
	if !can { // an older kernel would keep the standby table if this process were killed now
		return do()
	}
	n.relayed = true
	relay := func() error {
		return n.Make(NewObjectsOf(RelayName, n.Spec.Size, n.Spec.Spans...), p, TableOwner, true)
	}
	if err = relay(); errors.Is(err, unix.EPERM) {
		// A killed daemon left a standby table, which goes with the keeper of its socket.
		if err = n.release(); err == nil {
			err = relay()
		}
	}
	if err == nil {
		settle() // packets in flight before the standby table was there have passed both
		err = do()
		settle()
	}
	return err
}

// EndRelay removes the standby table, which would drop traffic of later grants.
func (n *Backend) EndRelay() error {
	if !n.relayed {
		return nil
	}
	err := n.DeleteTable(RelayName)
	n.relayed = err != nil
	return err
}

// settle waits until all packets that were in flight have left the kernel.
func settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h: a grace period of RCU
	if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); err != 0 {
		time.Sleep(50 * time.Millisecond) // membarrier is unavailable with isolated processors
	}
}

// Make makes a guard, in the existing table or anew. If this would start connection tracking, it takes two batches:
// the first with bare rules, the second with the full rules only, leaving the sets as the first filled them. Sessions
// wait in between, so it is kept short. If the sets are gone by then, Make starts again.
func (n *Backend) Make(o objects, p guard.Plan, flags uint32, anew bool) error {
	confirm := !p.ConfirmBy.IsZero()
	if n.Spec.Mode == guard.ModeGuard && !n.Tracks() {
		if err := n.Send(o, flags, anew, &p, (*Draft).BareRules); err != nil {
			return err
		}
		if err := n.Finish(o, flags, confirm); !errors.Is(err, guard.ErrGone) {
			return err
		}
		anew, p.Spend = false, true
	}
	return n.Send(o, flags, anew, &p, func(d *Draft) { d.addRules(confirm) })
}

// Finish replaces bare rules with the full rules.
func (n *Backend) Finish(o objects, flags uint32, confirm bool) error {
	return n.Send(o, flags, false, nil, func(d *Draft) { d.addRules(confirm) })
}

// Send makes a guard with these rules in one batch. Without a plan the sets stay unchanged.
func (n *Backend) Send(o objects, flags uint32, anew bool, p *guard.Plan, rules func(*Draft)) error {
	d := newDraft(o, n.Spec, n.closed(), n.Lacks)
	d.learned = n.learned
	if !anew {
		d.stale = n.stale(d)
	}
	d.makeTable(flags, anew)
	if p == nil {
		rules(d)
	} else {
		rest := *p
		rest.Leases = nil
		d.fill(rest.At(n.Spec.Now()), rules)
		d.grant(p.At(n.Spec.Now()).Leases, p.Spend)
	}
	if d.err != nil {
		return d.err
	}
	return explain("loading the guard", d.batch.send(n.Socket))
}

// grant adds elements for grants before all other elements. Adding those of a busy host takes the kernel a while, and
// each begins to count down when it is added.
func (d *Draft) grant(ls []guard.Lease, spend bool) {
	if len(ls) == 0 {
		return
	}
	var b batch
	if d.err == nil {
		d.err = d.lacks(ls)
	}
	if spend {
		d.err = errors.Join(d.err, d.spendAll(&b, ls))
	}
	for s, es := range d.grantElements(ls) {
		for part := range slices.Chunk(es, nl.Chunk) {
			b.add(unix.NFT_MSG_NEWSETELEM, s, part)
		}
	}
	first := slices.IndexFunc(d.batch.messages, func(m netlink.Message) bool {
		return m.Header.Type == nfType(unix.NFT_MSG_NEWSETELEM)
	})
	if first < 0 {
		first = len(d.batch.messages)
	}
	d.batch.messages = slices.Insert(d.batch.messages, first, b.messages...)
}

// release frees a table that an earlier daemon's keeper owns, by ending that keeper. It does not end other owners.
func (n *Backend) release() error {
	if owned, err := n.othersOwn(); err != nil || !owned {
		return err
	}
	// The keeper takes the lock a moment after the order to hold, and its socket closes later still if a process that
	// is just starting has inherited it.
	give := time.Now().Add(keeper.Ends)
	for i := 0; i < keeper.Looks || time.Now().Before(give); i++ {
		ended := n.endOtherKeepers()
		if owned, err := n.othersOwn(); err != nil || !owned {
			return err // one that did not end was not the table's
		}
		if ended != nil {
			return ended
		}
		time.Sleep(time.Millisecond)
	}
	return errOwned
}

// endOtherKeepers ends the keepers of earlier daemons, whatever their state directories.
func (n *Backend) endOtherKeepers() error {
	var err error
	if n.lock != nil {
		err = keeper.EndHolder(n.lock)
	}
	return errors.Join(err, keeper.EndAll(n.Keeper))
}

// errOwned is returned when another process owns the table.
var errOwned = errors.New(`another process, not a spa-keeper, owns the table "inet spa": end that process`)

func (n *Backend) othersOwn() (bool, error) {
	t, err := n.Table()
	return t.Flags&TableOwner != 0 && t.owner != n.Socket.PID(), err
}

func (n *Backend) Remove() error {
	t, err := n.present()
	if err != nil || t.Handle == 0 {
		return errors.Join(err, n.Keeper.End())
	}
	if err := n.release(); err != nil {
		return err
	}
	return errors.Join(n.DeleteTable(TableName), n.Keeper.End())
}

// DeleteTable deletes one of our tables, if it exists.
func (n *Backend) DeleteTable(name string) error {
	var b batch
	b.table(unix.NFT_MSG_DELTABLE, name, nil)
	err := b.send(n.Socket)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explain("removing the guard", err)
}

// tearingDown is how long Teardown waits for a daemon to remove its own table.
const tearingDown = 5 * time.Second

// Teardown removes the table from a process other than the daemon. Only the daemon can remove a table that it owns:
// rest wakes it, so that it sees what tornDown has written, and waits.
func Teardown(state string, tornDown func() error) (rest func() error, err error) {
	nothing := func() error { return nil }
	conn, socket, err := Dial()
	if err != nil {
		return nothing, explain("opening netlink", err)
	}
	n := &Backend{Objects: NewObjects(guard.Size), Conn: conn, Socket: socket}
	if n.lock, err = keeper.OpenFile(state, "", false); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return n.Close, fmt.Errorf("opening the lock of the guard's keeper: %w", err)
	}
	if _, err := n.present(); err != nil {
		return n.Close, err
	}
	// First: a daemon that sees the table go must know why.
	if err := tornDown(); err != nil {
		return n.Close, err
	}
	admitted := n.endAdmitted(nil)
	if owned, err := n.othersOwn(); err != nil || owned {
		return func() error { return errors.Join(n.persuade(), n.Close()) }, errors.Join(admitted, err)
	}
	return n.Close, errors.Join(admitted, n.DeleteTable(TableName))
}

// persuade wakes the table's owner and waits until it has removed or released the table.
func (n *Backend) persuade() error {
	if err := n.wake(); err != nil {
		return err
	}
	give := time.Now().Add(tearingDown)
	for i := 0; i < keeper.Looks || time.Now().Before(give); i++ {
		ended := n.endOtherKeepers() // each time: a keeper takes the lock a moment after the order to hold
		if owned, err := n.othersOwn(); err != nil || !owned {
			return errors.Join(err, n.DeleteTable(TableName))
		}
		if ended != nil {
			return ended
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("the guard belongs to a spa-server that does not remove it: end it (systemctl stop " +
		"spa-server), then tear down again")
}

// wake makes every daemon check its table.
func (n *Backend) wake() error {
	var b batch
	b.table(unix.NFT_MSG_NEWTABLE, wakeName, nil)
	b.table(unix.NFT_MSG_DELTABLE, wakeName, nil)
	return explain("waking spa-server", b.send(n.Socket))
}
