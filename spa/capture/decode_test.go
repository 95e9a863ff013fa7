package capture

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// Whole packets as a network carried them: "knock!" from port 40000 to 62201.
const (
	whole4 = "4500002200004000401100000a0000020a0000019c40f2f9000e0000" + "6b6e6f636b21"
	whole6 = "60000000000e1140" + "20010db8000000000000000000000002" + "20010db8000000000000000000000001" +
		"9c40f2f9000e0000" + "6b6e6f636b21"
)

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	d := newDecoder()
	for _, c := range []struct {
		decode   func([]byte) (Packet, verdict)
		whole    string
		protocol int // where it stands
		from     string
	}{
		{d.decode4, whole4, 9, "10.0.0.2:40000"},
		{d.decode6, whole6, 6, "[2001:db8::2]:40000"},
	} {
		b := fromHex(t, c.whole)
		p, v := c.decode(b)
		if v != passed || p.From != netip.MustParseAddrPort(c.from) || p.To.Port() != 62201 || string(p.Data) != "knock!" {
			t.Errorf("got %v to %v, %q, verdict %d; want from %s", p.From, p.To, p.Data, v, c.from)
		}
		for n := range b {
			if _, v := c.decode(b[:n]); v == passed {
				t.Errorf("%s: %d of %d bytes passed", c.from, n, len(b))
			}
		}
		b[c.protocol] = 6 // and the decoder still knows the last UDP header
		if _, v := c.decode(b); v == passed {
			t.Errorf("%s: TCP passed", c.from)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(fromHex(f, whole4))
	f.Add(fromHex(f, whole6))
	d := newDecoder()
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, decode := range []func([]byte) (Packet, verdict){d.decode4, d.decode6} {
			p, v := decode(b)
			if v >= verdicts || v == passed != p.From.IsValid() || len(p.Data) > len(b) {
				t.Errorf("verdict %d, %+v", v, p)
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	d := newDecoder()
	b.Run("IPv4", func(b *testing.B) { benchmark(b, d.decode4, fromHex(b, whole4)) })
	b.Run("IPv6", func(b *testing.B) { benchmark(b, d.decode6, fromHex(b, whole6)) })
}

func benchmark(b *testing.B, decode func([]byte) (Packet, verdict), packet []byte) {
	b.ReportAllocs()
	for b.Loop() {
		if _, v := decode(packet); v != passed {
			b.Fatal(v)
		}
	}
}
