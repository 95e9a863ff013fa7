package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// monitor opens a socket that hears of every change of a rule set that was not made over
// the socket own. The kernel filters: our own grants, thousands a second, wake nobody.
func monitor(own uint32) (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(c.SetBPF(notFrom(own)), c.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// notFrom passes messages whose nlmsg_pid, the sender's socket, is another one. All
// messages of a datagram are of one sender. BPF reads big endian, netlink is native.
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

func (n *nftables) watch(ctx context.Context, deadline time.Time) error {
	if err := n.events.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("watching the rule set: %w", err)
	}
	return n.hear(ctx)
}

// hear is watch, the deadline set.
func (n *nftables) hear(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { n.events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	ours := false
	for {
		messages, err := n.events.Receive()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) {
			return nil // some were lost: ours may be among them
		}
		if err != nil {
			return fmt.Errorf("watching the rule set: %w", err)
		}
		for _, m := range messages {
			ours = ours || n.concerns(m)
			// A batch of many changes ends with a new generation. One answer is enough.
			if kindOf(m) == unix.NFT_MSG_NEWGEN && ours {
				return nil
			}
		}
	}
}

func kindOf(m netlink.Message) uint16 { return uint16(m.Header.Type) & 0xff }

// concernsUs reports whether a message is about our table, or one that is made to wake us. Every message of nf_tables
// but that of a new generation has the name of its table in an attribute of type NFTA_TABLE_NAME.
func concernsUs(m netlink.Message) bool {
	if kindOf(m) == unix.NFT_MSG_NEWGEN || len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	name := tableOf(m.Data[4:])
	return name == tableName || name == wakeName
}

func tableOf(attributes []byte) string {
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME {
			return d.String()
		}
	}
	return ""
}
