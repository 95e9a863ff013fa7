package nl

import (
	"errors"
	"os"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"sallyport/spa/lab"
)

// TestAwaitAtADeadline: a change is reported even if a deadline passes between the messages about it.
func TestAwaitAtADeadline(t *testing.T) {
	lab.NeedRoot(t)
	host := lab.New(t, "host")[0]
	var changes *netlink.Conn
	var c *nft.Conn
	lab.Must(t, host.Do(func() (err error) {
		if changes, err = Changes(0); err == nil {
			c, err = nft.New()
		}
		return err
	}))
	defer changes.Close()
	c.AddTable(&nft.Table{Name: "ours", Family: nft.TableFamilyINet})
	lab.Must(t, host.Do(c.Flush))

	seen := 0
	await := func(within time.Duration) error {
		lab.Must(t, changes.SetReadDeadline(time.Now().Add(within)))
		return Await(t.Context(), changes, func(m netlink.Message) bool {
			seen++
			lab.Must(t, changes.SetReadDeadline(time.Unix(1, 0)))
			return tableName(m) == "ours"
		})
	}
	if err := await(lab.Patience); err != nil {
		t.Errorf("got %v after %d messages about a change", err, seen)
	}
	if err := await(0); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v without a change", err)
	}
}

func tableName(m netlink.Message) string {
	_, name := Table(m)
	return name
}
