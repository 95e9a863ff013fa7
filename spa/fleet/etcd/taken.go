package etcd

import (
	"bytes"
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/spa/fleet"
)

func (s *Store) takenKey(gateway string) string { return s.prefix + "taken/" + gateway }

// Report writes the report of a gateway on the bundle that it has taken over, unless it is there.
func (s *Store) Report(ctx context.Context, gateway string, line []byte) error {
	r, err := s.get(ctx, s.takenKey(gateway))
	if err == nil && !bytes.Equal(headIn(r), line) {
		err = s.change(ctx, clientv3.OpPut(s.takenKey(gateway), string(line)))
	}
	if err != nil {
		s.reconnect()
	}
	return err
}

// page is how many reports are read at once: etcd takes 1.5 MiB for each, and any gateway may have written as much.
const page = maxAnswer / (3 << 19)

// Taken returns the reports of gateways, by gateway. They may be anything; more than a report has is cut.
func (s *Store) Taken(ctx context.Context) (map[string][]byte, error) {
	found := make(map[string][]byte)
	from, end := s.takenKey(""), clientv3.GetPrefixRangeEnd(s.takenKey(""))
	for {
		r, err := s.get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(page))
		if err != nil {
			return nil, err
		}
		for _, kv := range r.Kvs {
			start := kv.Value[:min(len(kv.Value), fleet.MaxTaken+1)] // the rest can be large
			found[strings.TrimPrefix(string(kv.Key), s.takenKey(""))] = bytes.Clone(start)
			from = string(kv.Key) + "\x00"
		}
		if !r.More {
			return found, nil
		}
	}
}
