package spa

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"testing"
)

// vectorField returns the values of a field in all vectors.
func vectorField(f *testing.F, name string) [][]byte {
	var all [][]byte
	for _, v := range readVectors(f) {
		for _, text := range v[name] {
			all = append(all, unhex(f, text))
		}
	}
	return all
}

// FuzzOpen: no input causes a panic, and a refused packet returns a zero Knock.
func FuzzOpen(f *testing.F) {
	for _, packet := range vectorField(f, "packet") {
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		k, err := Open(packet, gateway(), onlyAlice(), testNow)
		if err != nil && !reflect.DeepEqual(k, Knock{}) {
			t.Errorf("an error came with a knock: %+v", k)
		}
		if err == nil && !bytes.Equal(packet[:nonceLen], k.Nonce[:]) {
			t.Errorf("a knock with another packet's nonce")
		}
	})
}

// FuzzRequest: Open on plaintexts that a holder of the key may seal. An accepted one has exactly this encoding, and
// Seal could have made it.
func FuzzRequest(f *testing.F) {
	for _, plain := range vectorField(f, "plaintext") {
		f.Add(plain)
	}
	f.Fuzz(func(t *testing.T, plain []byte) {
		plain = plain[:min(len(plain), requestMax)]
		r, err := parseRequest(plain, nil, nil)
		if err != nil {
			if !reflect.DeepEqual(r, Request{}) {
				t.Errorf("an error came with a request: %+v", r)
			}
			return
		}
		if err := r.check(); err != nil {
			t.Errorf("accepted, but cannot be sealed: %v", err)
		}
		if back := r.append(nil); !bytes.HasPrefix(plain, back) {
			t.Errorf("%x prints back as %x", plain, back)
		}
	})
}

// FuzzMalleable: a packet that differs from a sealed one is refused.
func FuzzMalleable(f *testing.F) {
	sealed := map[string]bool{}
	for _, v := range readVectors(f) {
		if v.one(f, "verdict") == "ok" {
			packet := v.hex(f, "packet")
			sealed[string(packet)] = true
			f.Add(packet, uint16(0), byte(0))
			f.Add(packet, uint16(len(packet)), byte(1))
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte, at uint16, change byte) {
		if len(packet) > 0 {
			packet = bytes.Clone(packet)
			packet[int(at)%len(packet)] ^= change
		}
		if _, err := Open(packet, gateway(), onlyAlice(), testNow); err == nil && !sealed[string(packet)] {
			t.Errorf("opened, but nobody sealed it: %x", packet)
		}
	})
}

// FuzzReceipt: no answer causes a panic, and only the server's own receipt opens.
func FuzzReceipt(f *testing.F) {
	var requests [][]byte
	answers := map[string]bool{}
	vectors := readVectors(f)
	for _, name := range slices.Sorted(maps.Keys(vectors)) { // n must mean the same in every run
		v := vectors[name]
		if _, ok := v["receipt"]; !ok {
			continue
		}
		request, receipt := v.hex(f, "request"), v.hex(f, "receipt")
		if v.one(f, "verdict") == "receipt-ok" {
			answers[string(request)+string(receipt)] = true
		}
		f.Add(receipt, len(requests))
		requests = append(requests, request)
	}
	f.Fuzz(func(t *testing.T, receipt []byte, n int) {
		request := requests[uint(n)%uint(len(requests))]
		r, err := OpenReceipt(receipt, request, alice())
		if err != nil && !reflect.DeepEqual(r, Receipt{}) {
			t.Errorf("an error came with a receipt: %+v", r)
		}
		if err == nil && !answers[string(request)+string(receipt)] {
			t.Errorf("opened, but nobody sealed it: %x", receipt)
		}
	})
}
