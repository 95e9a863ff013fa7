package nftables

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/guard"
	"sallyport/firewall/internal/nl"
)

// batch is a transaction. It bypasses nft.Conn, which requests an answer to each message and waits for each, and does
// not support flags of tables. Here only the last message is answered, and that answer is there when the send returns.
type batch struct {
	messages []netlink.Message
}

// Set gives grants a new timeout, or deletes them. An element costs one command if it is fresh, two if it is there, and
// three whatever it is. The kernel may have ended one that should be there, or have one that should be fresh: then it
// refuses the batch, and gets the one that always works.
func (n *Backend) Set(ls []guard.Lease) error {
	ls = guard.Timed(ls, n.Spec.Now())
	change := func() error {
		err := n.set(ls, (*batch).replace)
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) {
			err = n.set(ls, (*batch).force)
		}
		return err
	}
	if len(ls) > nl.Chunk {
		return explain("changing grants", n.Unheard(change))
	}
	return explain("changing grants", change())
}

// set sends the changes in one batch. The function change adds the commands for elements that get a new timeout.
func (n *Backend) set(ls []guard.Lease, change func(b *batch, s *nft.Set, es []nft.SetElement, fresh bool)) error {
	var b batch
	for part := range slices.Chunk(ls, nl.Chunk) {
		var fresh, there, gone []guard.Lease
		for _, l := range part {
			switch {
			case l.Remaining <= 0:
				l.Remaining = time.Second // added only to be deleted
				gone = append(gone, l)
			case l.Fresh():
				fresh = append(fresh, l)
			default:
				there = append(there, l)
			}
		}
		if err := errors.Join(n.Objects.lacks(fresh), n.Objects.lacks(there)); err != nil {
			return err
		}
		begin, stay, end := n.Objects.grantElements(fresh), n.Objects.grantElements(there), n.Objects.grantElements(gone)
		for _, s := range n.Objects.Sets() {
			change(&b, s, begin[s], true)
			change(&b, s, stay[s], false)
			b.remove(s, end[s])
		}
		if err := n.turns(&b, part); err != nil {
			return err
		}
	}
	return b.send(n.Socket)
}

// replace gives elements of a set a new timeout. It fails with EEXIST if a fresh one is there, and with ENOENT if
// another one is missing.
func (b *batch) replace(s *nft.Set, es []nft.SetElement, fresh bool) {
	for part := range slices.Chunk(es, nl.Chunk) {
		if fresh {
			b.append(nfType(unix.NFT_MSG_NEWSETELEM), netlink.Request|netlink.Create|netlink.Excl, elementsMessage(s, part))
			continue
		}
		b.add(unix.NFT_MSG_DELSETELEM, s, part)
		b.repeat(unix.NFT_MSG_NEWSETELEM)
	}
}

// force gives elements of a set a new timeout. Deleting a missing element would fail the batch, and older kernels do
// not change the timeout of an existing one: add, delete, add always works.
func (b *batch) force(s *nft.Set, es []nft.SetElement, _ bool) {
	for part := range slices.Chunk(es, nl.Chunk) {
		b.add(unix.NFT_MSG_NEWSETELEM, s, part)
		b.repeat(unix.NFT_MSG_DELSETELEM)
		b.repeat(unix.NFT_MSG_NEWSETELEM)
	}
}

// remove deletes elements of a set that may be missing.
func (b *batch) remove(s *nft.Set, es []nft.SetElement) {
	for part := range slices.Chunk(es, nl.Chunk) {
		b.add(unix.NFT_MSG_NEWSETELEM, s, part)
		b.repeat(unix.NFT_MSG_DELSETELEM)
	}
}

func (b *batch) add(kind uint16, s *nft.Set, es []nft.SetElement) {
	b.create(kind, elementsMessage(s, es))
}

// repeat sends another command for the elements of the last message.
func (b *batch) repeat(kind uint16) {
	b.create(kind, b.messages[len(b.messages)-1].Data)
}

// elementsMessage returns the body of a message about elements of a set.
func elementsMessage(s *nft.Set, es []nft.SetElement) []byte {
	data := append(make([]byte, 0, 64+64*len(es)), header(s.Table)...)
	data = nl.Text(data, unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	data = nl.Text(data, unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	return nl.Nested(data, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(data []byte) []byte {
		for _, e := range es {
			data = nl.Nested(data, unix.NFTA_LIST_ELEM, func(data []byte) []byte { return appendElement(data, &e) })
		}
		return data
	})
}

// table adds a command about a table of our family. With flags it sets the table's flags; nil leaves them unchanged.
func (b *batch) table(kind uint16, name string, flags *uint32) {
	data := nl.Text([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, unix.NFTA_TABLE_NAME, name)
	if flags != nil {
		data = number(data, unix.NFTA_TABLE_FLAGS, *flags)
	}
	b.create(kind, data)
}

func (b *batch) append(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) {
	b.messages = append(b.messages, netlink.Message{Header: netlink.Header{Type: kind, Flags: flags}, Data: data})
}

// nfType returns the type of a message of nf_tables.
func nfType(kind uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind)
}

func appendElement(data []byte, e *nft.SetElement) []byte {
	data = nl.Nested(data, unix.NFTA_SET_ELEM_KEY, func(data []byte) []byte {
		return nl.Attribute(data, unix.NFTA_DATA_VALUE, e.Key)
	})
	if e.Comment != "" {
		const comment = 0 // NFTNL_UDATA_SET_ELEM_COMMENT
		text := append([]byte(e.Comment), 0)
		data = nl.Attribute(data, unix.NFTA_SET_ELEM_USERDATA, append([]byte{comment, byte(len(text))}, text...))
	}
	if e.Timeout == 0 {
		return data
	}
	// The kernel reads a timeout of zero as none: an element with under a millisecond left would stay for ever.
	ms := binary.BigEndian.AppendUint64(nil, uint64(max(1, e.Timeout.Milliseconds())))
	return nl.Attribute(data, unix.NFTA_SET_ELEM_TIMEOUT, ms)
}

// send sends the batch and returns the errno of the first message that failed.
func (b *batch) send(c *netlink.Conn) error {
	if len(b.messages) == 0 {
		return nil
	}
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	ms := slices.Concat(
		[]netlink.Message{border(unix.NFNL_MSG_BATCH_BEGIN)},
		b.messages,
		[]netlink.Message{border(unix.NFNL_MSG_BATCH_END)},
	)
	if err := nl.Send(c, ms); err != nil {
		return err
	}
	if err := nl.Answer(c, ms[len(ms)-2].Header.Sequence); err != nil {
		return errors.Join(err, nl.Drain(c))
	}
	return nil
}

func border(kind netlink.HeaderType) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: kind, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
	}
}
