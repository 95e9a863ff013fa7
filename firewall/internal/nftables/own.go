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
)

// Flags of a table, of linux/netfilter/nf_tables.h. An owner is a socket: nobody else can
// change or flush the table, and it goes with the socket (Linux 5.12). With tablePersist too
// it stays, without an owner, and the next one can make it its own (Linux 6.9).
const (
	TableOwner   = 2
	TablePersist = 4
)

const (
	// RelayName is a table that stands in for ours while ours is exchanged.
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
		// There is a guard without one too, until somebody flushes it while nothing runs.
		n.Lacks = append(n.Lacks, "a process that keeps the guard while no spa-server runs ("+err.Error()+")")
	}
	return nil
}

// Persists reports whether a keeper sees to it that the table always has an owner.
func (n *Backend) Persists() bool { return n.own && n.Keeper.Lives() }

// KeeperGone reports whether the keeper has ended by itself, or was killed.
func (n *Backend) KeeperGone() bool { return n.own && n.Keeper.Gone() }

func (n *Backend) AwaitKeeper(ctx context.Context) bool { return n.Keeper.Await(ctx) }

// canOwn asks whether the kernel knows tables that persist, in a batch that fails as a whole.
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
		return false, explain("asking whether a table can have an owner", err)
	}
}

func CanPersist() bool {
	conn, socket, err := Dial()
	if err != nil {
		return false
	}
	n := &Backend{Conn: conn, Socket: socket}
	ok, err := n.canOwn()
	return errors.Join(err, n.Close()) == nil && ok
}

// Flags are those that our table is to have.
func (n *Backend) Flags() uint32 {
	if n.own {
		return TableOwner | TablePersist
	}
	return 0
}

// inPlace reports whether the table that is there can be made what ours is to be without
// deleting it: the kernel gives an owner only to what persists, and takes no flag away.
func (n *Backend) inPlace(t TableState) bool {
	owned := t.Flags&TableOwner != 0 && t.owner == n.Socket.PID()
	orphan := t.Flags&(TableOwner|TablePersist) == TablePersist
	if n.own {
		return owned || orphan
	}
	return t.Flags&(TableOwner|TablePersist) == 0
}

func (n *Backend) Load(spec guard.Spec, p guard.Plan) error {
	before := n.Spec
	n.Spec = spec
	err := n.loadPlan(p)
	if err != nil {
		n.Spec = before
	}
	return err
}

func (n *Backend) loadPlan(p guard.Plan) error {
	t, err := n.present()
	if err != nil {
		return err
	}
	// What was changed so far is put right by this load.
	if err := nl.Drain(n.Events); err != nil {
		return explain("forgetting earlier changes", err)
	}
	if n.learned, err = n.recollect(t); err != nil {
		return err
	}
	if err := errors.Join(n.place(t, p), n.EndRelay()); err != nil {
		return err
	}
	if t, err := n.Table(); err == nil {
		n.known = t.Handle // without it the table is known by its marker alone
	}
	n.Keeper.Hold()
	return nil
}

// recollect reads what the rules of the table in place have learned. A table of an earlier
// version has learned nothing.
func (n *Backend) recollect(t TableState) (map[string][]nft.SetElement, error) {
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

// place puts the guard where t is. The rules are exchanged inside the chains that are there,
// because a packet that is between two chains of the same priority while one replaces the
// other could pass both. Only where that cannot be, or fails because another tool or version
// left them otherwise, the whole table is replaced.
func (n *Backend) place(t TableState, p guard.Plan) error {
	if t.Handle == 0 {
		err := n.Make(n.Objects, p, n.Flags(), false)
		if err != nil && n.known == 0 {
			// Part of a guard that no daemon is behind would shut everybody out.
			err = errors.Join(err, n.DeleteTable(TableName))
		}
		return err
	}
	if n.inPlace(t) {
		if err := n.Make(n.Objects, p, n.Flags(), false); err == nil {
			return nil
		}
	}
	return n.BehindRelay(p, func() error {
		if err := n.release(); err != nil {
			return err
		}
		return n.Make(n.Objects, p, n.Flags(), true)
	})
}

// BehindRelay does what leaves a packet between two chains, or the table without an owner
// for an instant, while another guard like ours stands beside it. That one goes with our
// socket, whatever happens; the caller ends it.
func (n *Backend) BehindRelay(p guard.Plan, do func() error) error {
	can, err := n.canOwn()
	if err != nil {
		return err
	}
	if !can { // an older kernel would leave it behind if this process were killed now
		return do()
	}
	n.relayed = true
	relay := func() error { return n.Make(NewObjectsOf(RelayName, n.Spec.Size), p, TableOwner, true) }
	if err = relay(); errors.Is(err, unix.EPERM) {
		// A daemon that was killed meanwhile left one, which goes with the keeper of its socket.
		if err = n.release(); err == nil {
			err = relay()
		}
	}
	if err == nil {
		settle() // what was under way before the relay stood has passed both
		err = do()
		settle()
	}
	return err
}

// EndRelay removes the relay. One that stayed would drop what is granted later.
func (n *Backend) EndRelay() error {
	if !n.relayed {
		return nil
	}
	err := n.DeleteTable(RelayName)
	n.relayed = err != nil
	return err
}

// settle waits until every packet that was in the kernel's hands has left them.
func settle() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL of linux/membarrier.h: a grace period of RCU
	if _, _, err := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); err != 0 {
		time.Sleep(50 * time.Millisecond) // not to be had with isolated processors
	}
}

// Make makes a guard: in the table that is there, or anew. Where it would begin connection
// tracking, that takes a first batch; the second leaves the sets as the first has filled them,
// for until it is through sessions wait. Where those are gone by then, all is made once more.
func (n *Backend) Make(o objects, p guard.Plan, flags uint32, anew bool) error {
	confirm := !p.ConfirmBy.IsZero()
	if n.Spec.Mode == guard.ModeGuard && !n.Tracks() {
		if err := n.Send(o, flags, anew, &p, (*Draft).BareRules); err != nil {
			return err
		}
		if err := n.Finish(o, flags, confirm); !errors.Is(err, guard.ErrGone) {
			return err
		}
		anew = false
	}
	return n.Send(o, flags, anew, &p, func(d *Draft) { d.addRules(confirm) })
}

// Finish puts the whole rules in the place of bare ones.
func (n *Backend) Finish(o objects, flags uint32, confirm bool) error {
	return n.Send(o, flags, false, nil, func(d *Draft) { d.addRules(confirm) })
}

// Send makes a guard of one batch, with these rules. Without a plan the sets stay as they are.
func (n *Backend) Send(o objects, flags uint32, anew bool, p *guard.Plan, rules func(*Draft)) error {
	d := newDraft(o, n.Spec, n.closed(), n.Lacks)
	d.learned = n.learned
	d.makeTable(flags, anew)
	if p == nil {
		rules(d)
	} else {
		rest := *p
		rest.Leases = nil
		d.fill(rest.At(n.Spec.Now()), rules)
		d.grant(p.At(n.Spec.Now()).Leases)
	}
	if d.err != nil {
		return d.err
	}
	return explain("loading the guard", d.batch.send(n.Socket))
}

// grant adds elements for grants, before all other elements: it takes the kernel a while to
// add those of a busy host, and what it adds begins to count down then.
func (d *Draft) grant(ls []guard.Lease) {
	if len(ls) == 0 {
		return
	}
	var b batch
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

// release makes a table that belongs to another process one that anybody can change: it is
// a keeper that an earlier daemon left. Who else it is, is not for us to end.
func (n *Backend) release() error {
	if owned, err := n.othersOwn(); err != nil || !owned {
		return err
	}
	// The keeper takes the lock a moment after it was told to hold; and the socket closes a
	// moment later where a process that is being started has it still.
	give := time.Now().Add(keeper.Ends)
	for i := 0; i < keeper.Looks || time.Now().Before(give); i++ {
		if err := n.endOtherKeepers(); err != nil {
			return err
		}
		if owned, err := n.othersOwn(); err != nil || !owned {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errOwned
}

// endOtherKeepers ends the keepers that earlier daemons left, in whatever state directory.
func (n *Backend) endOtherKeepers() error {
	var err error
	if n.lock != nil {
		err = keeper.EndHolder(n.lock)
	}
	return errors.Join(err, keeper.EndAll(n.Keeper))
}

// errOwned is returned where the table is another process's.
var errOwned = errors.New(`the table "inet spa" belongs to another process that is no spa-keeper: end that`)

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

// DeleteTable deletes a table of ours, if it is there.
func (n *Backend) DeleteTable(name string) error {
	var b batch
	b.table(unix.NFT_MSG_DELTABLE, name, nil)
	err := b.send(n.Socket)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return explain("taking the guard away", err)
}

// tearingDown is how long Teardown waits for a daemon to take its own table away.
const tearingDown = 5 * time.Second

// Teardown removes the table from another process than the daemon. A table that has an
// owner only the daemon itself can remove: rest wakes it, so that it finds the mark, and waits.
func Teardown(state string, mark func() error) (rest func() error, err error) {
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
	// Marked first: a daemon that sees the table go must know why.
	if err := mark(); err != nil {
		return n.Close, err
	}
	admitted := n.endAdmitted(nil)
	if owned, err := n.othersOwn(); err != nil || owned {
		return func() error { return errors.Join(n.persuade(), n.Close()) }, errors.Join(admitted, err)
	}
	return n.Close, errors.Join(admitted, n.DeleteTable(TableName))
}

// persuade has an owner remove the table, or let go of it.
func (n *Backend) persuade() error {
	if err := n.wake(); err != nil {
		return err
	}
	give := time.Now().Add(tearingDown)
	for i := 0; i < keeper.Looks || time.Now().Before(give); i++ {
		if err := n.endOtherKeepers(); err != nil { // each time: a keeper takes the lock a moment after it was told to hold
			return err
		}
		if owned, err := n.othersOwn(); err != nil || !owned {
			return errors.Join(err, n.DeleteTable(TableName))
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("the guard belongs to a spa-server that does not take it away: end it (systemctl stop " +
		"spa-server), then tear down again")
}

// wake makes every daemon look at its table.
func (n *Backend) wake() error {
	var b batch
	b.table(unix.NFT_MSG_NEWTABLE, wakeName, nil)
	b.table(unix.NFT_MSG_DELTABLE, wakeName, nil)
	return explain("waking spa-server", b.send(n.Socket))
}
