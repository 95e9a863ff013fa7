package nftables

import (
	"encoding/binary"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nl"
)

// Numbers from linux/netfilter/nf_tables.h that package unix lacks.
const (
	setConcat     = 0x80 // NFT_SET_CONCAT
	setDescConcat = 2    // NFTA_SET_DESC_CONCAT
	bigEndian     = 2    // of a set's keys, in the user data that nft reads (NFTNL_UDATA_SET_KEYBYTEORDER)
)

// header begins a message about something in a table.
func header(t *nft.Table) []byte { return []byte{byte(t.Family), unix.NFNETLINK_V0, 0, 0} }

func (b *batch) create(kind uint16, data []byte) {
	b.append(nfType(kind), netlink.Request|netlink.Create, data)
}

// set adds a set without elements, if there is none of its name.
func (b *batch) set(s *nft.Set) {
	flags := uint32(unix.NFT_SET_TIMEOUT)
	if s.Dynamic {
		flags |= unix.NFT_SET_EVAL
	}
	if s.Concatenation {
		flags |= setConcat
	}
	data := nl.Text(header(s.Table), unix.NFTA_SET_TABLE, s.Table.Name)
	data = nl.Text(data, unix.NFTA_SET_NAME, s.Name)
	data = number(data, unix.NFTA_SET_FLAGS, flags)
	data = number(data, unix.NFTA_SET_KEY_TYPE, s.KeyType.GetNFTMagic())
	data = number(data, unix.NFTA_SET_KEY_LEN, s.KeyType.Bytes)
	data = number(data, unix.NFTA_SET_ID, s.ID)
	data = nl.Nested(data, unix.NFTA_SET_DESC, func(data []byte) []byte { return describeSet(data, s) })
	data = nl.Attribute(data, unix.NFTA_SET_USERDATA,
		userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, bigEndian))
	b.create(unix.NFT_MSG_NEWSET, data)
}

// describeSet appends the capacity of a set and the lengths of the fields of its key.
func describeSet(data []byte, s *nft.Set) []byte {
	if s.Size > 0 {
		data = number(data, unix.NFTA_SET_DESC_SIZE, s.Size)
	}
	if !s.Concatenation {
		return data
	}
	return nl.Nested(data, setDescConcat, func(data []byte) []byte {
		for _, field := range nft.ConcatSetTypeElements(s.KeyType) {
			data = nl.Nested(data, unix.NFTA_LIST_ELEM, func(data []byte) []byte {
				return number(data, unix.NFTA_DATA_VALUE, field.Bytes)
			})
		}
		return data
	})
}

// flushSet deletes the elements of a set.
func (b *batch) flushSet(s *nft.Set) {
	data := nl.Text(header(s.Table), unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	b.append(nfType(unix.NFT_MSG_DELSETELEM), netlink.Request, nl.Text(data, unix.NFTA_SET_ELEM_LIST_SET, s.Name))
}

// chain adds a chain without rules, if there is none of its name.
func (b *batch) chain(c *nft.Chain) {
	data := nl.Text(header(c.Table), unix.NFTA_CHAIN_TABLE, c.Table.Name)
	data = nl.Text(data, unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hooknum != nil {
		data = nl.Nested(data, unix.NFTA_CHAIN_HOOK, func(data []byte) []byte {
			data = number(data, unix.NFTA_HOOK_HOOKNUM, uint32(*c.Hooknum))
			return number(data, unix.NFTA_HOOK_PRIORITY, uint32(*c.Priority))
		})
		data = number(data, unix.NFTA_CHAIN_POLICY, uint32(*c.Policy))
		data = nl.Text(data, unix.NFTA_CHAIN_TYPE, string(c.Type))
	}
	b.create(unix.NFT_MSG_NEWCHAIN, data)
}

// flushChain deletes the rules of a chain.
func (b *batch) flushChain(c *nft.Chain) {
	data := nl.Text(header(c.Table), unix.NFTA_RULE_TABLE, c.Table.Name)
	b.append(nfType(unix.NFT_MSG_DELRULE), netlink.Request, nl.Text(data, unix.NFTA_RULE_CHAIN, c.Name))
}

// deleteChain deletes a chain without rules.
func (b *batch) deleteChain(c *nft.Chain) {
	data := nl.Text(header(c.Table), unix.NFTA_CHAIN_TABLE, c.Table.Name)
	b.append(nfType(unix.NFT_MSG_DELCHAIN), netlink.Request, nl.Text(data, unix.NFTA_CHAIN_NAME, c.Name))
}

// rule appends a rule to a chain.
func (b *batch) rule(c *nft.Chain, exprs []expr.Any) error {
	var err error
	data := nl.Text(header(c.Table), unix.NFTA_RULE_TABLE, c.Table.Name)
	data = nl.Text(data, unix.NFTA_RULE_CHAIN, c.Name)
	data = nl.Nested(data, unix.NFTA_RULE_EXPRESSIONS, func(data []byte) []byte {
		for _, e := range exprs {
			marshaled, failed := expr.Marshal(byte(c.Table.Family), e)
			if failed != nil {
				err = failed
			}
			data = nl.Nested(data, unix.NFTA_LIST_ELEM, func(data []byte) []byte { return append(data, marshaled...) })
		}
		return data
	})
	b.append(nfType(unix.NFT_MSG_NEWRULE), netlink.Request|netlink.Create|netlink.Append, data)
	return err
}

// number appends an attribute with a number, in the format of nf_tables.
func number(data []byte, kind uint16, v uint32) []byte {
	return nl.Attribute(data, kind, binary.BigEndian.AppendUint32(nil, v))
}
