package nftables

import (
	"errors"
	"io"
	"slices"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// Draft is a batch that makes a table. nft.Conn encodes the commands, and our batch sends them, because nft.Conn does
// not support flags of tables and requests an answer to each message.
type Draft struct {
	objects
	spec   guard.Spec
	refuse guard.Closed
	// claims is whether a closed port of the kernel's refuses packets without a grant. Otherwise nftables makes the
	// answer, which differs from that of a closed port.
	claims  bool
	learned map[string][]nft.SetElement // by the name of the set
	conn    *nft.Conn
	batch   batch
	printed map[*nft.Chain][]string // the rules in nft's language
}

func newDraft(o objects, c guard.Spec, refuse guard.Closed, lacks []string) (*Draft, error) {
	d := &Draft{objects: o, spec: c, refuse: refuse, printed: make(map[*nft.Chain][]string)}
	d.claims = refuse == guard.Reject && !slices.Contains(lacks, lacksNAT)
	var err error
	d.conn, err = nft.New(nft.WithTestDial(d.collect))
	return d, err
}

// collect keeps the messages that nft.Conn would send, and gives no answers.
func (d *Draft) collect(messages []netlink.Message) ([]netlink.Message, error) {
	for _, m := range messages {
		if m.Header.Type == unix.NFNL_MSG_BATCH_BEGIN || m.Header.Type == unix.NFNL_MSG_BATCH_END {
			continue
		}
		d.batch.append(m.Header.Type, m.Header.Flags&^netlink.Acknowledge, m.Data)
	}
	return nil, io.EOF
}

// makeTable begins the draft with a table that has these flags, whether it exists or not. With anew it deletes the
// existing table and its flags first.
func (d *Draft) makeTable(flags uint32, anew bool) {
	if anew {
		// The delete needs a table; one without flags conflicts with none.
		d.batch.table(unix.NFT_MSG_NEWTABLE, d.Table.Name, nil)
		d.batch.table(unix.NFT_MSG_DELTABLE, d.Table.Name, nil)
	}
	d.batch.table(unix.NFT_MSG_NEWTABLE, d.Table.Name, &flags)
}

// fill puts sets and rules into the table. In mode Admit there is nothing to guard: knock ports are as dark as every
// other port of a host that drops by default, and would stand out if they were darker.
func (d *Draft) fill(p guard.Plan, rules func(*Draft)) error {
	if d.spec.Mode == guard.ModeAdmit {
		for _, c := range []*nft.Chain{d.Marker, d.receipt} {
			d.conn.AddChain(c)
		}
		d.receiptRules()
		return d.conn.Flush()
	}
	if err := d.fillSets(p); err != nil {
		return err
	}
	rules(d)
	return d.conn.Flush()
}

func (d *Draft) fillSets(p guard.Plan) error {
	for _, s := range d.Sets() {
		if err := d.conn.AddSet(s, nil); err != nil {
			return err
		}
		d.conn.FlushSet(s)
	}
	errs := []error{
		d.add(d.Guarded, PortElements(d.spec.Guarded, p.Confirm)),
		d.add(d.cut, PortElements(d.spec.Cut, p.Confirm)),
	}
	for s, es := range d.grantElements(p.Leases) {
		errs = append(errs, d.add(s, es))
	}
	carried4, carried6 := FlowElements(p.Carried)
	addresses4, addresses6 := addressElements(d.spec.Targets)
	targets4, targets6 := targetElements(d.spec.Targets, p.Confirm)
	errs = append(errs,
		d.add(d.Carried4, carried4), d.add(d.Carried6, carried6),
		d.add(d.addresses4, addresses4), d.add(d.addresses6, addresses6),
		d.add(d.targets4, targets4), d.add(d.targets6, targets6),
	)
	for _, s := range d.objects.Learned() {
		errs = append(errs, d.conn.AddSet(s, nil), d.add(s, d.learned[s.Name]))
	}
	return errors.Join(errs...)
}

func (d *Draft) add(s *nft.Set, es []nft.SetElement) error {
	for part := range slices.Chunk(es, nl.Chunk) {
		if err := d.conn.SetAddElements(s, part); err != nil {
			return err
		}
	}
	return nil
}
