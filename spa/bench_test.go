package spa

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"sallyport/keys"
	"sallyport/spa/lab"
)

func BenchmarkSeal(b *testing.B) {
	r, s := openSSH(), alice()
	b.ReportAllocs()
	for b.Loop() {
		_, err := Seal(r, s)
		lab.Must(b, err)
	}
}

func BenchmarkOpen(b *testing.B) {
	valid := mustSeal(b, openSSH(), alice())
	stranger := alice()
	stranger.ID++
	for _, bb := range []struct {
		name   string
		packet []byte
		want   error
	}{
		{"valid", valid, nil},
		{"wrong-gate", flip(valid, 8*gateTagAt), ErrGate},
		{"unknown-client", mustSeal(b, openSSH(), stranger), ErrClient},
		{"wrong-mac", flip(valid, 8*bodyAt), ErrMAC},
	} {
		b.Run(bb.name, func(b *testing.B) {
			id, clients, o := gateway(), onlyAlice(), new(Opener)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := o.Open(bb.packet, id, clients, testNow); err != bb.want {
					b.Fatal(err)
				}
			}
		})
	}
	for _, n := range []int{1, 10_000, 1_000_000} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) { benchmarkClients(b, n) })
	}
}

// benchmarkClients opens packets of random clients: with many clients, their keys are not in the CPU's cache.
func benchmarkClients(b *testing.B, n int) {
	clients := make(clientMap, n)
	senders := make([]Sender, n)
	for i := range n {
		var secret [32]byte
		binary.BigEndian.PutUint64(secret[:], uint64(i))
		s := alice()
		s.ID, s.Key = keys.ID(rand.Uint64()), keys.KeyFromBytes(secret)
		senders[i] = s
		clients[s.ID] = keys.Credential{Client: keys.Client{ID: s.ID, Key: s.Key}, ID: s.ID, Key: s.Key}
	}
	packets := make([][]byte, 4096)
	for i := range packets {
		packets[i] = mustSeal(b, openSSH(), senders[rand.IntN(n)])
	}
	id, o := gateway(), new(Opener)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, err := o.Open(packets[i%len(packets)], id, clients, testNow)
		lab.Must(b, err)
	}
}

func BenchmarkReceipt(b *testing.B) {
	request := mustSeal(b, openSSH(), alice())
	knock := mustOpen(b, request)
	r := grantedReceipt()
	receipt, s := mustSealReceipt(b, r, knock), alice()
	b.Run("seal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			mustSealReceipt(b, r, knock)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, err := OpenReceipt(receipt, request, s)
			lab.Must(b, err)
		}
	})
}
