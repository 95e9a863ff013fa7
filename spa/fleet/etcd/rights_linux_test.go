package etcd

import (
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/spa/lab"
)

// TestLeastRightsOfMember gives agents the role that their page describes for gateways that share an address: it is
// enough for all that they do, and for nothing of another site or of another gateway's bundles.
func TestLeastRightsOfMember(t *testing.T) {
	c, o := newCluster(t, 1), newOffice(t)
	root, ctx := c.open(t, o, "root"), t.Context()
	first := o.bundles(t, 1, 1, "web", "db")
	lab.Must(t, root.PublishAll(ctx, first, 0))
	lab.Must(t, permitMember(ctx, root, "web", "web", "edge"))
	lab.Must(t, permitMember(ctx, root, "other", "other", "back"))
	lab.Value(root.client().UserAddWithOptions(ctx, "root", "", &clientv3.UserAddOptions{NoPassword: true}))(t)
	lab.Value(root.client().UserGrantRole(ctx, "root", "root"))(t)
	lab.Value(root.client().AuthEnable(ctx))(t)

	member := func(user, site string) *Member { return c.open(t, o, user).Member(site, user, remembered) }
	web, other := member("web", "edge"), member("other", "back")
	for _, m := range []*Member{web, other} {
		lab.Eventually(t, "there is a session", func() bool { return renew(t, m) == nil })
		v := watchShare(t, m)
		if s := lab.Value(m.Spend(ctx, "n", "i", "t"))(t); !s.Won {
			t.Errorf("got %+v", s)
		}
		lab.Must(t, m.Settle(ctx, "i", []byte("x"), time.Hour))
		if s := lab.Value(m.Spend(ctx, "n2", "i", "t2"))(t); string(s.Outcome) != "x" {
			t.Errorf("got %+v", s)
		}
		at := lab.Value(m.Floor(ctx, "f", []byte("x"), time.Hour))(t)
		lab.Eventually(t, "the floor arrives", func() bool { return v.get("f/f") != "" && m.delivered.Load() >= at })
		lab.Must(t, m.Ack(ctx, "run of "+m.name, at))
		lab.Must(t, renew(t, m))
	}
	f := follow(t, web.store, "web")
	lab.Eventually(t, "it gets its bundle", func() bool { return f.has(first[0]) })

	foreign, client := other.prefix, web.store.client()
	lease := lab.Value(root.get(ctx, other.nonceKey("n")))(t).Kvs[0].Lease
	put := clientv3.OpPut(foreign+"f/x", "x")
	for what, do := range map[string]func() error{
		"get a key":       func() error { _, err := client.Get(ctx, foreign+"s/other"); return err },
		"list":            func() error { _, err := client.Get(ctx, root.prefix, clientv3.WithPrefix()); return err },
		"put":             func() error { _, err := client.Do(ctx, put); return err },
		"put in a branch": func() error { _, err := client.Txn(ctx).Then(put).Commit(); return err },
		"delete":          func() error { _, err := client.Delete(ctx, foreign, clientv3.WithPrefix()); return err },
		"end a lease":     func() error { _, err := client.Revoke(ctx, clientv3.LeaseID(lease)); return err },
		"write a bundle":  func() error { return web.store.putHeads(ctx, first) },
		"get a bundle":    func() error { _, err := client.Get(ctx, root.headKey("db")); return err },
		"another site": func() error {
			_, err := web.store.Member("back", "web", remembered).Session(ctx, "run")
			return err
		},
	} {
		if err := do(); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := client.Txn(ctx).Then(clientv3.OpTxn(nil, []clientv3.Op{put}, nil)).Commit()
	if err == nil {
		t.Log("this etcd has CVE-2026-33343: every user may change every key, in a nested transaction")
	} else if !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Error(err)
	}
	watch := client.Watch(ctx, root.headKey("web"), clientv3.WithFromKey())
	lab.Must(t, renew(t, other))
	if r := <-watch; len(r.Events) > 0 {
		t.Logf("this etcd has CVE-2026-73499: every user may watch all keys after one that it may read, as %s",
			r.Events[0].Kv.Key)
	} else if !errors.Is(r.Err(), rpctypes.ErrPermissionDenied) {
		t.Error(r.Err())
	}
}
