package stun

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"

	"tailscale.com/net/stun"

	"sallyport/spa/lab"
)

// check is a browser's check with a packet of n bytes.
func check(n int) lab.STUN {
	packet := make([]byte, n)
	for i := range packet {
		packet[i] = byte(i * 7)
	}
	return lab.STUN{Packet: packet, Local: "aB3/", Password: "VOkJxbRl1RmTxUk/WvJxBt",
		Transaction: [12]byte{1, 2, 3, 11: 9}}
}

// TestPacket: a packet of every length comes out of a check as it went in, whatever browsers add that need not be
// understood, with FINGERPRINT or without.
func TestPacket(t *testing.T) {
	var into [MaxPacket]byte
	for n := MinPacket; n <= MaxPacket; n++ {
		for _, bare := range []bool{false, true} {
			c := check(n)
			c.Bare, c.Extra = bare, lab.Attribute(nil, 0xc057, []byte{0, 1, 0, 10})
			message := c.Check()
			if got, ok := Packet(&into, message); !ok || !bytes.Equal(got, c.Packet) {
				t.Errorf("%d bytes, bare %v: got %x, %v", n, bare, got, ok)
			}
			if !Signed(message, c.Password) || Signed(message, c.Password+"x") {
				t.Errorf("%d bytes, bare %v: the signature is not told", n, bare)
			}
		}
	}
}

// TestBounds: the shortest check has the shortest length that is accepted, and the longest that fits the longest.
func TestBounds(t *testing.T) {
	var into [MaxPacket]byte
	if n := len(check(MinPacket).Check()); n != MinLen+4 { // USE-CANDIDATE is not demanded
		t.Errorf("the shortest check has %d bytes, and %d are the least", n-4, MinLen)
	}
	long := check(MaxPacket)
	long.Extra = lab.Attribute(nil, 0xc057, make([]byte, MaxLen-len(long.Check())-4))
	if message := long.Check(); len(message) != MaxLen {
		t.Errorf("got %d bytes", len(message))
	} else if _, ok := Packet(&into, message); !ok {
		t.Error("the longest is refused")
	}
	long.Extra = append(long.Extra, 0xc0, 0x58, 0, 0)
	if _, ok := Packet(&into, long.Check()); ok {
		t.Error("a longer one is accepted")
	}
}

// slips are messages that differ from a check in one thing.
func slips() map[string][]byte {
	c := check(MinPacket)
	good := c.Check()
	signed := len(good) - 8 - 24 // where MESSAGE-INTEGRITY begins
	change := func(at int, x ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], x)
		return mended(b)
	}
	with := func(change func(s *lab.STUN)) []byte {
		s := c
		change(&s)
		return s.Check()
	}
	user := func(old, new string) []byte { return mended(bytes.Replace(good, []byte(old), []byte(new), 1)) }
	text := string(good[headerLen+attributeLen:][:224])
	return map[string][]byte{
		"a response":          change(0, 1),
		"another method":      change(1, 3),
		"another cookie":      change(4, 0x22),
		"a length too great":  change(2, 0xff),
		"a length too small":  change(3, good[3]-4),
		"cut":                 good[:len(good)-4],
		"one byte more":       append(bytes.Clone(good), 0),
		"four bytes more":     append(bytes.Clone(good), 0, 0, 0, 0),
		"a false fingerprint": append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1),
		"a short fingerprint": change(len(good)-6, 0, 3),
		"a short signature":   change(signed+2, 0, 16),
		"no signature":        unsigned(c),
		"a second signature":  with(func(s *lab.STUN) { s.Extra = lab.Attribute(nil, 0x0008, make([]byte, 20)) }),
		"a second user name":  with(func(s *lab.STUN) { s.Extra = lab.Attribute(nil, 0x0006, []byte("a:b")) }),
		"an unknown demand":   with(func(s *lab.STUN) { s.Extra = lab.Attribute(nil, 0x7fff, nil) }),
		"no user name":        change(headerLen, 0xc0),
		"no colon":            user(":aB3/", "/aB3/"),
		"a local name of 3":   with(func(s *lab.STUN) { s.Local = "aB3" }),
		"a short packet":      with(func(s *lab.STUN) { s.Packet, s.Local = s.Packet[:167], "aB3/aB3/" }),
		"a long packet":       with(func(s *lab.STUN) { s.Packet = make([]byte, 189) }),
		"padded base64":       user(text[:4], text[:3]+"="),
		"base64url":           user(text[:4], text[:3]+"-"),
		"a line break":        user(text[:4], text[:3]+"\n"),
	}
}

// mended returns a message with a FINGERPRINT that is right.
func mended(b []byte) []byte {
	n := len(b) - 8
	binary.BigEndian.PutUint32(b[n+4:], crc32.ChecksumIEEE(b[:n])^0x5354554e)
	return b
}

// unsigned is a check whose MESSAGE-INTEGRITY is another attribute.
func unsigned(c lab.STUN) []byte {
	b := c.Check()
	b[len(b)-8-24] = 0xc0
	return mended(b)
}

// TestSlips: nothing but a check is a candidate, and it costs no memory.
func TestSlips(t *testing.T) {
	var into [MaxPacket]byte
	for name, message := range slips() {
		if got, ok := Packet(&into, message); ok {
			t.Errorf("%s: got %x", name, got)
		}
		if n := testing.AllocsPerRun(10, func() { Packet(&into, message) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestOneText: of the texts that decode to the same packet, only one is accepted.
func TestOneText(t *testing.T) {
	var into [MaxPacket]byte
	for _, n := range []int{169, 170} { // with four and two spare bits
		good := check(n).Check()
		last := headerLen + attributeLen + ufragText.EncodedLen(n) - 1
		accepted := 0
		for _, x := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
			b := bytes.Clone(good)
			b[last] = byte(x)
			if _, ok := Packet(&into, mended(b)); ok {
				accepted++
			}
		}
		if want := map[int]int{169: 4, 170: 16}[n]; accepted != want {
			t.Errorf("%d bytes: %d last characters are accepted, want %d", n, accepted, want)
		}
	}
}

// TestResponses: a browser reads the address in a response, both are signed, and neither is longer than the shortest
// request.
func TestResponses(t *testing.T) {
	c := check(MinPacket)
	message := c.Check()
	for _, text := range []string{"192.0.2.2:40000", "[2001:db8::2]:40000", "0.0.0.1:1", "[::1]:65535"} {
		from := netip.MustParseAddrPort(text)
		b := Granted(message, c.Password, from)
		id, got, err := stun.ParseResponse(b)
		if err != nil || got != from || [12]byte(id) != c.Transaction {
			t.Errorf("got %v of %x, %v, want %v", got, id, err, from)
		}
		for kind, b := range map[string][]byte{"granted": b, "refused": Refused(message, c.Password)} {
			n := len(b)
			if n > MinLen || len(b)%4 != 0 || int(binary.BigEndian.Uint16(b[2:])) != n-headerLen {
				t.Errorf("%s has %d bytes", kind, n)
			}
			if [20]byte(b[n-8-20:n-8]) != sign(b[:n-8-24], c.Password) || !intact(b[:n-8], b[n-4:]) {
				t.Errorf("%s is not signed", kind)
			}
		}
	}
	b := Refused(message, c.Password)
	if b[0] != 1 || b[1] != 0x11 || string(b[20:28]) != "\x00\x09\x00\x04\x00\x00\x04\x03" {
		t.Errorf("refused is %x", b)
	}
}

// TestRFC5769 checks MESSAGE-INTEGRITY and FINGERPRINT by the examples of RFC 5769, sections 2.1 and 2.2.
func TestRFC5769(t *testing.T) {
	for name, text := range map[string]string{
		"request": `00010058 2112a442 b7e7a701bc34d686fa87dfae 80220010 5354554e207465737420636c69656e74
			00240004 6e0001ff 80290008 932ff9b151263b36 00060009 6576746a3a68367659202020
			00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004 e57a3bcf`,
		"response": `0101003c 2112a442 b7e7a701bc34d686fa87dfae 8022000b 7465737420766563746f7220
			00200008 0001a147e112a643 00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96`,
	} {
		b := lab.Value(hex.DecodeString(strings.Join(strings.Fields(text), "")))(t)
		n := len(b)
		if got := sign(b[:n-8-24], "VOkJxbRl1RmTxUk/WvJxBt"); got != [20]byte(b[n-8-20:n-8]) {
			t.Errorf("%s: MESSAGE-INTEGRITY %x", name, got)
		}
		if !intact(b[:n-8], b[n-4:]) {
			t.Errorf("%s: FINGERPRINT", name)
		}
	}
}

// FuzzPacket: whatever arrives, a packet has a possible length, and the message is the only one with its text.
func FuzzPacket(f *testing.F) {
	f.Add(check(MinPacket).Check())
	f.Add(check(MaxPacket).Check())
	for _, message := range slips() {
		f.Add(message)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		var into [MaxPacket]byte
		before := bytes.Clone(message)
		packet, ok := Packet(&into, message)
		if !bytes.Equal(message, before) {
			t.Fatal("the message was changed")
		}
		if !ok {
			if packet != nil {
				t.Fatal("a packet without an ok")
			}
			return
		}
		text := ufragText.EncodeToString(packet) + ":"
		if len(packet) < MinPacket || len(packet) > MaxPacket || !bytes.Contains(message, []byte(text)) {
			t.Fatalf("got %x", packet)
		}
		Signed(message, "password")
		for _, b := range [][]byte{Granted(message, "password", netip.MustParseAddrPort("[2001:db8::2]:40000")),
			Refused(message, "password")} {
			if len(b) > len(message) {
				t.Fatalf("%d bytes for %d", len(b), len(message))
			}
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	good := check(180).Check()
	noise := bytes.Clone(good)
	noise[0] = 0xff
	for name, message := range map[string][]byte{"check": good, "noise": noise} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var into [MaxPacket]byte
			for b.Loop() {
				Packet(&into, message)
			}
		})
	}
}
