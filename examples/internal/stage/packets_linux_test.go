package stage

import (
	"bytes"
	"slices"
	"testing"

	"sallyport/spa/lab"
)

// TestMain lets an ordinary user run the tests that need networks.
func TestMain(m *testing.M) { lab.Main(m) }

func TestUDP4(t *testing.T) {
	good := append([]byte{0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1},
		0x80, 0, 0xf2, 0xf9, 0, 11, 0, 0, 'a', 'b', 'c')
	if got := udp4(good, KnockPort); string(got) != "abc" {
		t.Errorf("got %q, want abc", got)
	}
	for name, change := range map[string]func([]byte) []byte{
		"IPv6":         func(p []byte) []byte { p[0] = 0x65; return p },
		"TCP":          func(p []byte) []byte { p[9] = 6; return p },
		"other port":   func(p []byte) []byte { p[23]++; return p },
		"cut off":      func(p []byte) []byte { return p[:27] },
		"cut in data":  func(p []byte) []byte { return p[:30] },
		"empty":        func(p []byte) []byte { return nil },
		"long header":  func(p []byte) []byte { p[0] = 0x4f; return p },
		"short length": func(p []byte) []byte { p[25] = 7; return p },
	} {
		if got := udp4(change(bytes.Clone(good)), KnockPort); got != nil {
			t.Errorf("%s: got %q, want nothing", name, got)
		}
	}
}

// TestResend: an ICMP error for one packet does not keep later ones from being sent.
func TestResend(t *testing.T) {
	host, _ := lab.Pair(t)
	client := &Host{Host: host}
	copied := lab.Value(Sniff(client))(t)
	defer copied.Close()
	const packets = 20
	if err := Resend(client, "192.0.2.1", slices.Repeat([][]byte{make([]byte, 168)}, packets)); err != nil {
		t.Error(err)
	}
	sent := 0
	lab.Eventually(t, "all packets to be sent", func() bool {
		more, err := copied.Knocks()
		sent += len(more)
		return err == nil && sent == packets
	})
}
