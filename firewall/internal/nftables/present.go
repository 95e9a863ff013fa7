package nftables

import (
	"encoding/binary"
	"errors"

	"sallyport/firewall/internal/guard"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableState is the kernel's description of the table with our name.
type TableState struct {
	Handle uint64 // 0: there is no table
	Flags  uint32
	owner  uint32 // the netlink port of the owner, if Flags has TableOwner
}

// present looks for our table. A table that is not ours is ErrForeign.
func (n *Backend) present() (TableState, error) {
	t, err := n.Table()
	if err != nil || t.Handle == 0 {
		return TableState{}, err
	}
	if t.Handle == n.known || n.hasMarker() || n.hasSets() {
		return t, nil
	}
	return TableState{}, guard.ErrForeign
}

// Table returns the table with our name. The kernel never reuses a handle, so it identifies the table until that is
// deleted, whatever another tool changes in it.
func (n *Backend) Table() (TableState, error) {
	var get batch
	get.table(unix.NFT_MSG_GETTABLE, n.Objects.Table.Name, nil)
	get.messages[0].Header.Flags = netlink.Request
	answers, err := n.Socket.Execute(get.messages[0])
	if errors.Is(err, unix.ENOENT) {
		return TableState{}, nil
	}
	if err != nil {
		return TableState{}, explain("looking for the table", err)
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		t, err := decodeTable(m.Data[4:])
		if err != nil {
			return TableState{}, explain("looking for the table", err)
		}
		if t.Handle != 0 {
			return t, nil
		}
	}
	return TableState{}, errors.New("looking for the table: the kernel did not report its handle")
}

func decodeTable(attributes []byte) (TableState, error) {
	// Numbers of linux/netfilter/nf_tables.h.
	const tableHandle, tableOwnerPort = 4, 7
	var t TableState
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return t, err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_TABLE_FLAGS:
			t.Flags = d.Uint32()
		case tableHandle:
			t.Handle = d.Uint64()
		case tableOwnerPort:
			t.owner = d.Uint32()
		}
	}
	return t, d.Err()
}

func (n *Backend) hasMarker() bool {
	_, err := n.Conn.ListChain(n.Objects.Table, markerChain)
	return err == nil
}

// hasSets reports whether the table has sets of grants like ours: the marker may have been deleted while no daemon
// ran.
func (n *Backend) hasSets() bool {
	o := &n.Objects
	for _, ours := range []*nft.Set{o.Guarded, o.Grants4, o.Grants6} {
		s, err := n.Conn.GetSetByName(o.Table, ours.Name)
		if err != nil || s.KeyType.GetNFTMagic() != ours.KeyType.GetNFTMagic() {
			return false
		}
	}
	return true
}
