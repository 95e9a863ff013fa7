package nl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Changes opens a socket that receives every change of an nftables rule set except those made over the socket own.
// The kernel filters them, so our own grants, thousands a second, wake no process.
func Changes(own uint32) (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.SetBPF(notFrom(own)), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// notFrom returns a filter that passes messages from other senders than own (nlmsg_pid). All messages in a datagram
// have the same sender. BPF loads big-endian, netlink is in native order.
func notFrom(own uint32) []bpf.RawInstruction {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		own = bits.ReverseBytes32(own)
	}
	const offsetPID = 12
	prog, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetPID, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: own, SkipTrue: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		panic(err) // the program is constant
	}
	return prog
}

// Await returns nil after a change that concerns the caller, or when changes were lost. Its errors are ctx's, the
// socket's, and that of a read deadline that the caller has set. No change is lost to a deadline.
func Await(ctx context.Context, changes *netlink.Conn, concerns func(netlink.Message) bool) error {
	stop := context.AfterFunc(ctx, func() { changes.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := false
	for {
		messages, err := changes.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded) && ours: // between the messages of one batch
			return nil
		case err != nil:
			return fmt.Errorf("watching the rule set: %w", err)
		}
		for _, m := range messages {
			ours = ours || concerns(m)
			// A batch of many changes ends with a new generation. One return for it is enough.
			if Kind(m) == unix.NFT_MSG_NEWGEN && ours {
				return nil
			}
		}
	}
}

// Kind returns the type of a message of nf_tables, such as unix.NFT_MSG_NEWTABLE.
func Kind(m netlink.Message) uint16 { return uint16(m.Header.Type) & 0xff }

// Table returns the family (such as unix.NFPROTO_INET) and the name of the table that a message of nf_tables is
// about; "" if it names none. Every message except that of a new generation has the name in an attribute of type
// NFTA_TABLE_NAME.
func Table(m netlink.Message) (family byte, name string) {
	if Kind(m) == unix.NFT_MSG_NEWGEN || len(m.Data) < 4 {
		return 0, ""
	}
	d, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return 0, ""
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME {
			return m.Data[0], d.String()
		}
	}
	return m.Data[0], ""
}
