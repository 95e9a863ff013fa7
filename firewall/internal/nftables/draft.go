package nftables

import (
	"slices"

	nft "github.com/google/nftables"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// Draft is a batch that makes a table.
type Draft struct {
	objects
	spec   guard.Spec
	refuse guard.Closed
	// claims is whether a closed port of the kernel's refuses packets without a grant. Otherwise nftables makes the
	// answer, which differs from that of a closed port.
	claims  bool
	legs    []guard.Leg                 // ports that lead elsewhere
	stale   []*nft.Chain                // chains of type nat that the table has and no longer needs
	learned map[string][]nft.SetElement // by the name of the set
	batch   batch
	printed map[*nft.Chain][]string // the rules in nft's language
	err     error                   // of a rule that could not be encoded
}

func newDraft(o objects, spec guard.Spec, refuse guard.Closed, lacks []string) *Draft {
	return &Draft{objects: o, spec: spec, refuse: refuse, printed: make(map[*nft.Chain][]string),
		legs: guard.Legs(spec.Forwards), claims: refuse == guard.Reject && !slices.Contains(lacks, lacksNAT)}
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
func (d *Draft) fill(p guard.Plan, rules func(*Draft)) {
	if d.spec.Mode == guard.ModeAdmit {
		d.batch.chain(d.Marker)
		d.batch.chain(d.receipt)
		d.receiptRules()
		return
	}
	d.fillSets(p)
	rules(d)
}

func (d *Draft) fillSets(p guard.Plan) {
	for _, s := range d.madeOf(d.Sets()) {
		d.batch.set(s)
		if !d.once.counts(s) {
			d.batch.flushSet(s)
		}
	}
	for _, s := range d.madeOf(d.Learned()) {
		d.batch.set(s)
	}
	d.add(d.Guarded, PortElements(d.spec.Guarded, p.Confirm))
	d.add(d.cut, PortElements(d.spec.Cut, p.Confirm))
	d.add(d.once.ports, PortElements(d.spec.Once, p.Confirm))
	for s, es := range d.grantElements(p.Leases) {
		d.add(s, es)
	}
	carried4, carried6 := FlowElements(p.Carried)
	addresses4, addresses6 := addressElements(d.spec.Targets)
	targets4, targets6 := targetElements(d.spec.Targets, p.Confirm)
	d.add(d.Carried4, carried4)
	d.add(d.Carried6, carried6)
	d.add(d.addresses4, addresses4)
	d.add(d.addresses6, addresses6)
	d.add(d.targets4, targets4)
	d.add(d.targets6, targets6)
	for _, s := range d.madeOf(d.Learned()) {
		if !d.once.counts(s) {
			d.add(s, d.learned[s.Name])
		}
	}
}

func (d *Draft) add(s *nft.Set, es []nft.SetElement) {
	for part := range slices.Chunk(es, nl.Chunk) {
		d.batch.add(unix.NFT_MSG_NEWSETELEM, s, part)
	}
}
