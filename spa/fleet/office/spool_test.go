package office

import (
	"context"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// weighing is a destination that keeps what the program has in memory when the last bundle is put.
type weighing struct {
	Directory
	most *uint64
}

func (w weighing) Put(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	return w.Directory.Put(ctx, func(yield func(*fleet.Bundle, error) bool) {
		for b, err := range bundles {
			*w.most = max(*w.most, inMemory())
			if !yield(b, err) {
				return
			}
		}
	}, known)
}

func inMemory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestPublishMemory: a publish has a few bundles in memory at once, and not all.
func TestPublishMemory(t *testing.T) {
	h := newHouse(t)
	h.addGateways(t, 8)
	h.addClients(t, 100)
	terms := &keys.Terms{Client: keys.Client{Allow: []string{"ssh"}}}
	for i := range 200 {
		terms.From = append(terms.From, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32))
	}
	for i := range 100 {
		terms.Name = fmt.Sprintf("client-%06d", i)
		lab.Must(t, os.WriteFile(fmt.Sprintf("%s/clients/%s.toml", h.dir, terms.Name), terms.Text(), 0o640))
	}
	lab.Must(t, h.act(func(o *Office, v *Vault, to string) error {
		before, most := inMemory(), uint64(0)
		r, err := o.Publish(t.Context(), v, weighing{Directory(to), &most}, to, false, time.Now())
		if err != nil {
			return err
		}
		if more := int64(most) - int64(before); more > r.Bytes/2 {
			t.Errorf("%d bytes more are in memory, for bundles of %d bytes", more, r.Bytes)
		}
		return nil
	}, t.TempDir()))
}
