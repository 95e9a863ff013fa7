package capture

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"sallyport/spa/lab"
)

// Whole packets as a network carried them: "knock!" from port 40000 to 62201.
const (
	whole4 = "4500002200004000401100000a0000020a0000019c40f2f9000e0000" + "6b6e6f636b21"
	whole6 = "60000000000e1140" + "20010db8000000000000000000000002" + "20010db8000000000000000000000001" +
		"9c40f2f9000e0000" + "6b6e6f636b21"
)

func fromHex(t testing.TB, s string) []byte {
	t.Helper()
	b := lab.Value(hex.DecodeString(s))(t)
	return b
}

func TestDecode(t *testing.T) {
	d := newDecoder()
	for _, c := range []struct {
		decode   func([]byte) (Packet, verdict)
		whole    string
		protocol int // offset of the protocol number
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
		b[c.protocol] = 6 // while the decoder still has the last UDP header
		if _, v := c.decode(b); v == passed {
			t.Errorf("%s: TCP passed", c.from)
		}
	}
}

// A twist is one changed byte of a packet, and the verdict that follows.
type twist struct {
	at    int
	value byte
	want  verdict
}

var twists4 = map[string]twist{
	"time to live":         {8, 0x20, passed},
	"don't fragment":       {6, 0x40, passed},
	"more fragments":       {6, 0x20, fragment},
	"a later fragment":     {7, 1, fragment},
	"another version":      {0, 0x65, malformed},
	"options":              {0, 0x46, options},
	"a shorter IP length":  {3, 0x21, malformed},
	"a longer IP length":   {3, 0x23, malformed},
	"a shorter UDP length": {25, 0x0d, malformed},
	"a longer UDP length":  {25, 0x0f, malformed},
}

var twists6 = map[string]twist{
	"hop limit":            {7, 0x20, passed},
	"fragment":             {6, nextFragment, fragment},
	"hop-by-hop options":   {6, 0, extension},
	"routing":              {6, 43, extension},
	"destination options":  {6, 60, extension},
	"TCP":                  {6, 6, extension},
	"another version":      {0, 0x40, malformed},
	"a shorter IP length":  {5, 0x0d, malformed},
	"a longer IP length":   {5, 0x0f, malformed},
	"a shorter UDP length": {45, 0x0d, malformed},
	"a longer UDP length":  {45, 0x0f, malformed},
}

// TestVerdicts: one changed byte changes the verdict, with or without padding by the link.
func TestVerdicts(t *testing.T) {
	d := newDecoder()
	for _, family := range []struct {
		decode func([]byte) (Packet, verdict)
		whole  string
		twists map[string]twist
	}{{d.decode4, whole4, twists4}, {d.decode6, whole6, twists6}} {
		for name, twist := range family.twists {
			for _, padding := range []int{0, 18} {
				b := append(fromHex(t, family.whole), make([]byte, padding)...)
				b[twist.at] = twist.value
				if _, v := family.decode(b); v != twist.want {
					t.Errorf("version %d, %s, %d bytes of padding: got verdict %d, want %d", b[0]>>4, name, padding, v, twist.want)
				}
			}
		}
	}
}

// TestImpossible: no network can deliver packets from these addresses.
func TestImpossible(t *testing.T) {
	for addr, want := range map[string]bool{
		"0.0.0.0": true, "0.1.2.3": true, "127.0.0.1": true, "127.255.255.254": true, "224.0.0.1": true,
		"239.255.255.255": true,
		"255.255.255.255": true, "::": true, "::1": true, "ff02::1": true, "::ffff:192.0.2.1": true,
		"192.0.2.1": false, "255.255.255.254": false, "1.0.0.0": false, "2001:db8::1": false, "fe80::1": false,
		"fd00::1": false,
	} {
		if got := impossible(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: got %v", addr, got)
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
