package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nl"
)

func (n *Backend) Watch(ctx context.Context, deadline time.Time) error {
	if err := n.Events.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("watching the rule set: %w", err)
	}
	return n.await(ctx)
}

// await returns nil after a change by another socket that concerns us, or if such a change may have been missed.
func (n *Backend) await(ctx context.Context) error {
	if n.missed.Swap(false) {
		return nil
	}
	err := nl.Await(ctx, n.Events, n.concerns)
	if errors.Is(err, os.ErrDeadlineExceeded) && n.missed.Swap(false) {
		return nil
	}
	return err
}

// concernsUs reports whether a message is about our table, or about the table that another process makes to wake us.
func concernsUs(m netlink.Message) bool {
	family, name := nl.Table(m)
	return family == unix.NFPROTO_INET && (name == TableName || name == wakeName)
}

// Unheard calls send, which commits one batch, while nothing listens for changes: the kernel then builds no message for
// each element, which is half the time of a batch with thousands. If the kernel's generation shows that something else
// changed the rule set meanwhile, Watch returns as if it had heard of that.
func (n *Backend) Unheard(send func() error) error {
	before, err := n.generation()
	if err != nil {
		return err
	}
	if err := n.Events.LeaveGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return explain("listening no more for changes of the rule set", err)
	}
	err = send()
	if err == nil {
		before++
	}
	if joined := n.Events.JoinGroup(unix.NFNLGRP_NFTABLES); joined != nil {
		n.Events.Close() // Watch ends with an error, rather than being deaf
		return errors.Join(err, explain("listening for changes of the rule set", joined))
	}
	if after, asked := n.generation(); asked != nil || after != before {
		n.missed.Store(true)
		n.Events.SetReadDeadline(time.Unix(1, 0)) // Watch may be waiting
	}
	return err
}

// generation returns the number of the rule set's generation. Each batch that the kernel commits makes the next one.
func (n *Backend) generation() (uint32, error) {
	answers, err := n.Socket.Execute(netlink.Message{
		Header: netlink.Header{Type: nfType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   make([]byte, 4), // struct nfgenmsg
	})
	if err != nil {
		return 0, explain("reading the rule set's generation", err)
	}
	for _, m := range answers {
		if nl.Kind(m) != unix.NFT_MSG_NEWGEN || len(m.Data) < 4 {
			continue
		}
		d, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return 0, explain("reading the rule set's generation", err)
		}
		d.ByteOrder = binary.BigEndian
		for d.Next() {
			if d.Type() == unix.NFTA_GEN_ID {
				return d.Uint32(), d.Err()
			}
		}
	}
	return 0, explain("reading the rule set's generation", nl.ErrNoAnswer)
}
