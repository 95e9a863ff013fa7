package nftables

import (
	"context"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/nl"
)

func (n *Backend) Watch(ctx context.Context, deadline time.Time) error {
	if err := n.Events.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("watching the rule set: %w", err)
	}
	return nl.Await(ctx, n.Events, n.concerns)
}

// concernsUs reports whether a message is about our table, or about the table that another process makes to wake us.
func concernsUs(m netlink.Message) bool {
	family, name := nl.Table(m)
	return family == unix.NFPROTO_INET && (name == TableName || name == wakeName)
}
