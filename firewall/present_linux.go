package firewall

import (
	"encoding/binary"
	"errors"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// present reports whether our table is there. One that is not ours is ErrForeign.
func (n *nftables) present() (bool, error) {
	handle, err := n.handle()
	if err != nil || handle == 0 {
		return false, err
	}
	if handle == n.known || n.hasMarker() || n.hasSets() {
		return true, nil
	}
	return false, ErrForeign
}

// handle is the number of the table of our name; 0: there is none. The kernel gives no
// number twice, so it stays the same whatever another tool does in the table, until it is
// deleted.
func (n *nftables) handle() (uint64, error) {
	const tableHandle = 4 // NFTA_TABLE_HANDLE of linux/netfilter/nf_tables.h
	name := attribute(nil, unix.NFTA_TABLE_NAME, append([]byte(tableName), 0))
	answers, err := n.socket.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETTABLE),
			Flags: netlink.Request,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, name...),
	})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, explain("looking for the table", err)
	}
	for _, m := range answers {
		if len(m.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, explain("looking for the table", err)
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			if d.Type() == tableHandle {
				return d.Uint64(), d.Err()
			}
		}
	}
	return 0, errors.New("firewall: looking for the table: the kernel does not tell its number")
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
