package office

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// house is an office with one administrator.
type house struct {
	dir string
	me  *age.HybridIdentity
}

func newHouse(t testing.TB) house {
	t.Helper()
	h := house{filepath.Join(t.TempDir(), "office"), lab.Value(age.GenerateHybridIdentity())(t)}
	lab.Must(t, os.Mkdir(h.dir, 0o750))
	s := Settings{Name: "prod", Domain: "example.net", KnockPorts: []uint16{62201}, Receipts: true,
		Services: map[string][]string{"ssh": {"tcp/22"}, "web": {"tcp/80"}}}
	lab.Value(Create(h.dir, s, "anna", h.me.Recipient()))(t)
	return h
}

// addGateways adds n gateways and returns the key of the last.
func (h house) addGateways(t testing.TB, n int) (id *age.HybridIdentity) {
	t.Helper()
	lab.Must(t, Change(h.dir, func(o *Office) error {
		for i := range n {
			id = lab.Value(age.GenerateHybridIdentity())(t)
			name := fmt.Sprintf("gw%d", i)
			g := &Gateway{Name: name, Address: name + ".example.net", Recipient: id.Recipient()}
			lab.Must(t, g.write(o, place.OnlyNew))
		}
		return nil
	}))
	return id
}

// addClients adds n clients without reading the office for each.
func (h house) addClients(t testing.TB, n int) {
	t.Helper()
	lab.Must(t, Change(h.dir, func(o *Office) error {
		v := lab.Value(o.Unlock(h.me))(t)
		lab.Must(t, os.MkdirAll(o.path(clientsDir), 0o750))
		return parallel(context.Background(), n, func(i int) error {
			name := fmt.Sprintf("client-%06d", i)
			terms := &keys.Terms{Client: keys.Client{Name: name, Allow: []string{"ssh"}}}
			sealed, err := seal((&keys.FleetKey{Client: name, Key: keys.NewKey()}).Text(), v.own.Recipient())
			if err == nil {
				err = os.WriteFile(o.keyPath(name), sealed, 0o600)
			}
			if err == nil {
				err = os.WriteFile(o.termsPath(name), terms.Text(), 0o640)
			}
			return err
		})
	}))
}

// BenchmarkPublish is what one publish costs: to read the office, to open the keys of all clients, to make and to write
// the bundles.
func BenchmarkPublish(b *testing.B) {
	for _, size := range [][2]int{{100, 10}, {1_000, 100}, {10_000, 100}} {
		b.Run(strconv.Itoa(size[0])+"clients/"+strconv.Itoa(size[1])+"gateways", func(b *testing.B) {
			h := newHouse(b)
			h.addGateways(b, size[1])
			h.addClients(b, size[0])
			to := b.TempDir()
			b.ReportAllocs()
			var read, bytes float64
			for b.Loop() {
				began := time.Now()
				lab.Must(b, Change(h.dir, func(o *Office) error {
					read += time.Since(began).Seconds()
					v := lab.Value(o.Unlock(h.me))(b)
					report, err := o.Publish(context.Background(), v, Directory(to), to, false, time.Now())
					if err == nil {
						bytes = float64(report.Bytes)
					}
					return err
				}))
			}
			b.ReportMetric(read/float64(b.N), "s-reading/op")
			b.ReportMetric(bytes/float64(size[1]), "bytes/bundle")
		})
	}
}
