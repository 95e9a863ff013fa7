package firewall

import (
	"encoding/binary"
	"errors"

	"sallyport/firewall/internal/guard"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableState is what the kernel says of the table of our name.
type tableState struct {
	handle uint64 // 0: there is none
	flags  uint32
	owner  uint32 // the netlink port that it belongs to, where flags have tableOwner
}

// present looks for our table. One that is not ours is ErrForeign.
func (n *nftables) present() (tableState, error) {
	t, err := n.table()
	if err != nil || t.handle == 0 {
		return tableState{}, err
	}
	if t.handle == n.known || n.hasMarker() || n.hasSets() {
		return t, nil
	}
	return tableState{}, guard.ErrForeign
}

// table is what is there of our name. The kernel gives no handle twice, so it stays the same
// whatever another tool does in the table, until it is deleted.
func (n *nftables) table() (tableState, error) {
	var get batch
	get.table(unix.NFT_MSG_GETTABLE, n.objects.table.Name, nil)
	get.messages[0].Header.Flags = netlink.Request
	answers, err := n.socket.Execute(get.messages[0])
	if errors.Is(err, unix.ENOENT) {
		return tableState{}, nil
	}
	if err != nil {
		return tableState{}, explain("looking for the table", err)
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		t, err := decodeTable(m.Data[4:])
		if err != nil {
			return tableState{}, explain("looking for the table", err)
		}
		if t.handle != 0 {
			return t, nil
		}
	}
	return tableState{}, errors.New("looking for the table: the kernel does not tell its number")
}

func decodeTable(attributes []byte) (tableState, error) {
	// Numbers of linux/netfilter/nf_tables.h.
	const tableHandle, tableOwnerPort = 4, 7
	var t tableState
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return t, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_TABLE_FLAGS:
			t.flags = d.Uint32()
		case tableHandle:
			t.handle = d.Uint64()
		case tableOwnerPort:
			t.owner = d.Uint32()
		}
	}
	return t, d.Err()
}

func (n *nftables) hasMarker() bool {
	_, err := n.conn.ListChain(n.objects.table, markerChain)
	return err == nil
}

// hasSets reports whether the table has sets of grants like ours: the marker may have been
// deleted while this process did not run.
func (n *nftables) hasSets() bool {
	o := &n.objects
	for _, ours := range []*nft.Set{o.guarded, o.grants4, o.grants6} {
		s, err := n.conn.GetSetByName(o.table, ours.Name)
		if err != nil || s.KeyType.GetNFTMagic() != ours.KeyType.GetNFTMagic() {
			return false
		}
	}
	return true
}
