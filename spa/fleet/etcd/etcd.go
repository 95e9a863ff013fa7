// Package etcd hands bundles out through etcd (etcd.io), version 3.4 and later, and has what gateways share that have
// one address: see Member.
//
// All keys begin with sallyport/FLEET/, FLEET being the fleet's id:
//
//	serial                        the serial of the last publication, decimal
//	bundle/GATEWAY                the readable part of its bundle
//	taken/GATEWAY                 its report of what it has taken over: see fleet.Taken
//	sealed/GATEWAY/SERIAL/SUM/PART    the rest in parts of at most 512 KiB: an etcd takes 1.5 MiB at a time
//	share/SITE/                   what the members of a site share:
//	    spent/n/NAME, spent/i/NAME    a nonce and a request id; the token of the attempt that spent them
//	    o/NAME, f/NAME                the outcome for a request id; floors
//	    s/MEMBER, a/MEMBER            the member's session; the revision up to which it has all floors in force
//
// Numbers in keys have 19 and 4 digits, so that they sort. SUM is the sealed part's SHA-256: of two administrators who
// publish at once, neither changes the other's parts. The parts of a bundle are written before its readable part,
// and removed after the next one's: what a readable part describes is there. The store is trusted with nothing: a
// gateway checks what it gets.
package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"sallyport/keys"
	"sallyport/spa/fleet"
)

const (
	partSize   = 512 << 10
	batch      = 100              // operations in a transaction: etcd takes 128
	patience   = 10 * time.Second // for one answer
	keepAlive  = 5 * time.Second  // a store that is gone is noticed after twice this
	maxAnswer  = 16 << 20         // bytes in one: a part of a bundle, or the readable parts of all
	resyncTime = time.Second      // before the next attempt after an error
	readPause  = time.Second      // between two reads: a store may report changes without end
)

// ErrNewer means that the store has a publication that the caller does not know: publishing over it could undo what
// another administrator changed.
var ErrNewer = errors.New("the store has a newer publication")

// Config describes a store. Client certificates are in TLS: etcd takes the common name as the user's.
type Config struct {
	Endpoints []string // "https://192.0.2.10:2379"
	TLS       *tls.Config
	Fleet     keys.FleetID
}

// Store is a connection to etcd, which is made when it is needed and again when it breaks.
type Store struct {
	*stores
	prefix string
}

// Open opens a store. It does not wait for an answer.
func Open(c Config) (*Store, error) {
	stores, err := connect(c)
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return &Store{stores, "sallyport/" + c.Fleet.String() + "/"}, nil
}

// grant gets a lease.
func (s *Store) grant(ctx context.Context, lasts time.Duration) (clientv3.LeaseID, error) {
	return ask(ctx, s.stores, AnswerTime, func(ctx context.Context, to *clientv3.Client) (clientv3.LeaseID, error) {
		r, err := to.Grant(ctx, int64((lasts+time.Second-1)/time.Second))
		if err != nil {
			return 0, fmt.Errorf("a lease of %v: %w", lasts.Round(time.Second), err)
		}
		return r.ID, nil
	})
}

// Close closes the connection.
func (s *Store) Close() error { return s.close() }

func (s *Store) serialKey() string               { return s.prefix + "serial" }
func (s *Store) headKey(gateway string) string   { return s.prefix + "bundle/" + gateway }
func (s *Store) sealedKey(gateway string) string { return s.prefix + "sealed/" + gateway + "/" }

// ofSerial begins the keys of the parts of bundles with this serial.
func (s *Store) ofSerial(h fleet.Head) string {
	return fmt.Sprintf("%s%019d/", s.sealedKey(h.Gateway), h.Serial)
}

func (s *Store) partKey(h fleet.Head, i int64) string {
	return fmt.Sprintf("%s%x/%04d", s.ofSerial(h), h.Sum, i)
}

// Serial returns the serial of the last publication; 0 if there is none.
func (s *Store) Serial(ctx context.Context) (int64, error) {
	serial, _, err := s.serial(ctx)
	return serial, err
}

// serial returns the last serial and the revision at which it was written.
func (s *Store) serial(ctx context.Context) (serial, revision int64, err error) {
	r, err := s.get(ctx, s.serialKey())
	if err != nil {
		return 0, 0, err
	}
	if len(r.Kvs) == 0 {
		return 0, 0, nil
	}
	serial, err = strconv.ParseInt(string(r.Kvs[0].Value), 10, 64)
	if err != nil || serial < 1 {
		return 0, 0, fmt.Errorf("etcd: %s is not a serial", s.serialKey())
	}
	return serial, r.Kvs[0].ModRevision, nil
}

// Publish stores bundles that all have the same serial, if the last publication is known, the last that the caller
// knows, or was this one and did not end. Otherwise the error is ErrNewer, and nothing was changed. After any other
// error some gateways may have their new bundle: publish again. It keeps only their readable parts in memory.
func (s *Store) Publish(ctx context.Context, bundles iter.Seq2[*fleet.Bundle, error], known int64) error {
	serial, revision, err := s.serial(ctx)
	switch {
	case err != nil:
		return err
	case serial > known:
		return fmt.Errorf("%w: %d, and the last known here is %d", ErrNewer, serial, known)
	}
	var heads []*fleet.Bundle
	for b, err := range bundles {
		if err != nil {
			return err
		}
		if err := s.putParts(ctx, b); err != nil {
			return err
		}
		head, err := fleet.ParseReadable(b.Readable()) // without the sealed part, which can be large
		if err != nil {
			return err
		}
		heads = append(heads, head)
	}
	if len(heads) == 0 {
		return nil
	}
	is := strconv.FormatInt(heads[0].Serial, 10)
	if err := s.putSerial(ctx, is, revision); err != nil {
		return err
	}
	if err := s.putHeads(ctx, heads); err != nil {
		return err
	}
	return s.removeOld(ctx, heads)
}

// putSerial writes a serial if the last one is that of a revision. It asks one store, once: a second attempt could not
// tell the first from another administrator's.
func (s *Store) putSerial(ctx context.Context, serial string, revision int64) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	key, at := s.serialKey(), s.current()
	r, err := s.all[at.index].client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
		Then(clientv3.OpPut(key, serial)).Commit()
	switch {
	case err != nil:
		s.next(at)
		return fmt.Errorf("etcd: %w", err)
	case !r.Succeeded:
		return fmt.Errorf("%w: it came just now", ErrNewer)
	}
	return nil
}

func (s *Store) putParts(ctx context.Context, b *fleet.Bundle) error {
	sealed := b.Sealed()
	for i := int64(0); len(sealed) > 0; i++ {
		n := min(len(sealed), partSize)
		put := clientv3.OpPut(s.partKey(b.Head, i), string(sealed[:n]))
		if err := s.change(ctx, put); err != nil {
			return err
		}
		sealed = sealed[n:]
	}
	return nil
}

// putHeads makes the gateways look, many of them at once.
func (s *Store) putHeads(ctx context.Context, bundles []*fleet.Bundle) error {
	for len(bundles) > 0 {
		n := min(len(bundles), batch)
		ops := make([]clientv3.Op, n)
		for i, b := range bundles[:n] {
			ops[i] = clientv3.OpPut(s.headKey(b.Gateway), string(b.Readable()))
		}
		if err := s.change(ctx, ops...); err != nil {
			return err
		}
		bundles = bundles[n:]
	}
	return nil
}

// removeOld removes the parts of earlier bundles.
func (s *Store) removeOld(ctx context.Context, bundles []*fleet.Bundle) error {
	for _, b := range bundles {
		from, to := s.sealedKey(b.Gateway), s.ofSerial(b.Head)
		if err := s.change(ctx, clientv3.OpDelete(from, clientv3.WithRange(to))); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the bundle of a retired gateway.
func (s *Store) Remove(ctx context.Context, gateway string) error {
	return s.change(ctx, clientv3.OpDelete(s.headKey(gateway)),
		clientv3.OpDelete(s.sealedKey(gateway), clientv3.WithPrefix()))
}

// change makes all changes at once.
func (s *Store) change(ctx context.Context, changes ...clientv3.Op) error {
	_, err := ask(ctx, s.stores, patience, func(ctx context.Context, to *clientv3.Client) (*clientv3.TxnResponse, error) {
		return to.Txn(ctx).Then(changes...).Commit()
	})
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	return nil
}

// Found returns the readable parts of all gateways' bundles, by gateway. They may be anything.
func (s *Store) Found(ctx context.Context) (map[string][]byte, error) {
	r, err := s.get(ctx, s.headKey(""), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	found := make(map[string][]byte, len(r.Kvs))
	for _, kv := range r.Kvs {
		found[strings.TrimPrefix(string(kv.Key), s.headKey(""))] = kv.Value
	}
	return found, nil
}

// Follow calls take with the bytes of a gateway's bundle, with the one that is there and with each that follows, until
// ctx ends. If take returns an error, it calls take again after a while. It reports trouble and goes on. The bytes may
// be anything.
func (s *Store) Follow(ctx context.Context, gateway string, take func([]byte) error, trouble func(error)) {
	for ctx.Err() == nil {
		err := s.follow(ctx, gateway, take)
		if ctx.Err() != nil {
			return
		}
		trouble(err)
		s.reconnect()
		select {
		case <-ctx.Done():
		case <-time.After(resyncTime):
		}
	}
}

// follow is Follow until something goes wrong.
func (s *Store) follow(ctx context.Context, gateway string, take func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var revision int64
	var head []byte
	taken := true
	read := func() (err error) {
		revision, head, err = s.read(ctx, gateway, func(text []byte) { taken = take(text) == nil })
		return err
	}
	if err := read(); err != nil {
		return err
	}
	at := s.current()
	defer s.afterWatch(ctx, at)
	watch := s.watch(ctx, at, s.headKey(gateway), clientv3.WithRev(revision+1))
	due := time.Now().Add(readPause)
	alive := time.NewTicker(patience)
	defer alive.Stop()
	for {
		select {
		case <-alive.C: // a watch waits in silence for a store that is gone
			changed, err := s.changed(ctx, gateway, revision, head)
			if err == nil && (changed || !taken) {
				err = read()
			}
			if err != nil {
				return err
			}
		case r, ok := <-watch:
			if err := over(at, r, ok); err != nil {
				return err
			}
			if len(r.Events) == 0 {
				continue
			}
			if err := settle(ctx, at, watch, due); err != nil {
				return err
			}
			if err := read(); err != nil {
				return err
			}
			due = time.Now().Add(readPause)
		}
	}
}

// settle waits until the next read is due. That one is enough for every change until then.
func settle(ctx context.Context, at *use, watch clientv3.WatchChan, due time.Time) error {
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case r, ok := <-watch:
			if err := over(at, r, ok); err != nil {
				return err
			}
		}
	}
}

// errBack means that a store was restored from a backup, or made again: a watch would wait for revisions to come that
// are past.
var errBack = errors.New("the store went back to an earlier state")

// changed reports whether a gateway's bundle has another readable part than head, which it had at a revision. It
// returns an error if the store does not answer, or has not come as far as that.
func (s *Store) changed(ctx context.Context, gateway string, revision int64, head []byte) (bool, error) {
	r, err := s.get(ctx, s.headKey(gateway))
	switch {
	case err != nil:
		return false, err
	case r.Header.Revision < revision:
		return false, fmt.Errorf("etcd: %w", errBack)
	}
	return !bytes.Equal(headIn(r), head), nil
}

// headIn returns the value in an answer; nil if there is none.
func headIn(r *clientv3.GetResponse) []byte {
	if len(r.Kvs) == 0 {
		return nil
	}
	return r.Kvs[0].Value
}

// get gets one key.
func (s *Store) get(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	return s.getWithin(ctx, patience, key, options...)
}

func (s *Store) getWithin(ctx context.Context, within time.Duration, key string, options ...clientv3.OpOption) (
	*clientv3.GetResponse, error) {
	r, err := ask(ctx, s.stores, within, func(ctx context.Context, to *clientv3.Client) (*clientv3.GetResponse, error) {
		return to.Get(ctx, key, options...)
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: %w", err)
	}
	return r, nil
}

// read reads the bundle as it is at one revision, and returns that and its readable part.
func (s *Store) read(ctx context.Context, gateway string, take func([]byte)) (revision int64, readable []byte,
	err error) {
	r, err := s.get(ctx, s.headKey(gateway))
	if err != nil {
		return 0, nil, err
	}
	revision, readable = r.Header.Revision, headIn(r)
	if readable == nil {
		return revision, nil, nil
	}
	head, err := fleet.ParseReadable(readable)
	if err != nil || head.Gateway != gateway || head.Size > fleet.MaxBundle {
		take(readable) // the gateway reports the problem
		return revision, readable, nil
	}
	text := bytes.NewBuffer(bytes.Clone(readable))
	for i := int64(0); i*partSize < head.Size; i++ {
		r, err := s.get(ctx, s.partKey(head.Head, i), clientv3.WithRev(revision))
		if err != nil {
			return 0, nil, err
		}
		if len(r.Kvs) > 0 && len(r.Kvs[0].Value) <= partSize {
			text.Write(r.Kvs[0].Value)
		}
	}
	take(text.Bytes())
	return revision, readable, nil
}
