package etcd

import (
	"context"
	"iter"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/spa/fleet"
	"sallyport/spa/lab"
)

// client returns a client of the store that is used.
func (s *Store) client() *clientv3.Client { return s.all[s.current().index].client }

// PublishAll is Publish for bundles in memory.
func (s *Store) PublishAll(ctx context.Context, bundles []*fleet.Bundle, known int64) error {
	return s.Publish(ctx, each(bundles), known)
}

// each returns bundles one after the other.
func each(bundles []*fleet.Bundle) iter.Seq2[*fleet.Bundle, error] {
	return func(yield func(*fleet.Bundle, error) bool) {
		for _, b := range bundles {
			if !yield(b, nil) {
				return
			}
		}
	}
}

// Cluster is a cluster for tests of other packages with this one.
type Cluster struct{ *cluster }

// NewCluster starts an etcd with so many members.
func NewCluster(t testing.TB, size int) Cluster { return Cluster{newCluster(t, size)} }

// Hosts returns the hosts and ports of its members, as in from of agent.toml.
func (c Cluster) Hosts() string {
	return strings.ReplaceAll(strings.Join(c.endpoints, ","), "https://", "")
}

// Leader returns the index of the member that leads the others.
func (c Cluster) Leader(t testing.TB) int {
	t.Helper()
	s := lab.Value(Open(Config{Endpoints: c.endpoints, TLS: c.as(t, "anyone")}))(t)
	defer s.Close()
	return c.leader(t, s)
}

// Signal sends a signal to a member.
func (c Cluster) Signal(t testing.TB, i int, signal syscall.Signal) {
	t.Helper()
	lab.Must(t, c.members[i].Process.Signal(signal))
}

// Files returns the paths of the authority's certificate, and of a user's certificate and key.
func (c Cluster) Files(t testing.TB, user string) (ca, cert, key string) {
	cert, key = c.issue(t, user, time.Now().Add(time.Hour))
	return filepath.Join(c.dir, "ca.pem"), cert, key
}

// Restart kills a member of the cluster and starts it again.
func (c Cluster) Restart(t testing.TB, i int) {
	t.Helper()
	c.kill(i)
	c.start(t, i)
}

// Put sets a key.
func (c Cluster) Put(t testing.TB, key, value string) {
	t.Helper()
	s := lab.Value(Open(Config{Endpoints: c.endpoints, TLS: c.as(t, "anyone")}))(t)
	defer s.Close()
	lab.Eventually(t, "a key is set", func() bool { _, err := s.client().Put(t.Context(), key, value); return err == nil })
}
