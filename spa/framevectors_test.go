package spa

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"sallyport/spa/lab"
	"sallyport/spa/stun"
)

const frameDir = "testdata/browser"

// A frame is a vector of testdata/browser before it is written: a browser's check with a packet of ok-open.
type frame struct {
	about, verdict string
	check          lab.STUN
	mend           func(message []byte) []byte
	from           string
}

// icePassword returns alice's for a packet.
func icePassword(packet []byte) string {
	password := alice().Key.ICEPassword(packet[:nonceLen])
	return string(password[:])
}

func frames(t *testing.T) map[string]frame {
	packet := readVectors(t)["ok-length-168"].hex(t, "packet")
	longest := framedPacket(t, stun.MaxPacket)
	made := map[string]frame{}
	add := func(name, verdict, about string, packet []byte, change func(f *frame)) {
		f := frame{about: about, verdict: verdict, from: "192.0.2.2:40000"}
		f.check = lab.STUN{Packet: packet, Local: "d5Fz", Password: icePassword(packet),
			Transaction: [12]byte{0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae}}
		change(&f)
		made[name] = f
	}
	add("ok", "ok", "The shortest packet.", packet, func(*frame) {})
	add("ok-repeated", "ok", "The same packet in the browser's next check: another transaction.", packet,
		func(f *frame) { f.check.Transaction[11]++ })
	add("ok-ipv6", "ok", "From an IPv6 address.", packet, func(f *frame) { f.from = "[2001:db8::2]:40000" })
	add("ok-longest", "ok", "The longest packet.", longest, func(*frame) {})
	add("ok-bare", "ok", "Without FINGERPRINT.", longest, func(f *frame) { f.check.Bare = true })
	add("ok-attribute", "ok", "With an attribute that need not be understood.", packet,
		func(f *frame) { f.check.Extra = lab.Attribute(nil, 0xc057, []byte{0, 1, 0, 10}) })
	add("wrong-attribute", "wrong", "With an unknown attribute that must be understood.", packet,
		func(f *frame) { f.check.Extra = lab.Attribute(nil, 0x7fff, nil) })
	add("wrong-fingerprint", "wrong", "A bit of FINGERPRINT flipped.", packet,
		func(f *frame) { f.mend = func(b []byte) []byte { return flip(b, 8*(len(b)-1)) } })
	add("wrong-cookie", "wrong", "Another magic cookie.", packet,
		func(f *frame) { f.mend = func(b []byte) []byte { return flip(b, 8*4) } })
	add("wrong-long", "wrong", "A packet of 189 bytes.", framedPacket(t, stun.MaxPacket+1), func(*frame) {})
	add("wrong-local", "wrong", "A local user name of 3 characters.", packet, func(f *frame) { f.check.Local = "d5F" })
	add("unsigned", "unsigned", "Signed with another password.", packet, func(f *frame) { f.check.Password += "A" })
	return made
}

// framedPacket returns a packet of n bytes, which depends on n alone.
func framedPacket(t *testing.T, n int) []byte {
	seedRandom(t, "browser-"+string(rune(n)))
	return seal(openSSH().append(nil), alice(), n)
}

func (f frame) message() []byte {
	b := f.check.Check()
	if f.mend != nil {
		b = f.mend(b)
	}
	return b
}

func (f frame) text() string {
	l := &lines{}
	l.WriteString("# " + f.about + "\n")
	l.add("verdict", f.verdict)
	key := testBytes(0x80)
	l.add("client key", key[:])
	l.add("packet", f.check.Packet)
	l.add("ice-pwd", icePassword(f.check.Packet))
	l.add("from", f.from)
	l.add("message", f.message())
	if f.verdict == "ok" {
		k := &Knock{Key: alice().Key, Nonce: Nonce(f.check.Packet)}
		l.add("granted", k.Respond(f.message(), netip.MustParseAddrPort(f.from), Granted))
		l.add("refused", k.Respond(f.message(), netip.MustParseAddrPort(f.from), ReasonNotNow))
	}
	return l.String()
}

// TestFrameVectorsAreGenerated: the files are those that this version makes.
func TestFrameVectorsAreGenerated(t *testing.T) {
	made := make(map[string]string)
	for name, f := range frames(t) {
		made[name] = f.text()
	}
	lab.Vectors(t, frameDir, made)
}

// TestFrameVectors: each message is taken for what its vector says, and the password is that of PROTOCOL.md.
func TestFrameVectors(t *testing.T) {
	for _, path := range lab.Value(filepath.Glob(filepath.Join(frameDir, "*.txt")))(t) {
		v := parseVector(t, string(lab.Value(os.ReadFile(path))(t)))
		packet, message := v.hex(t, "packet"), v.hex(t, "message")
		info := "sallyport 1 ice-pwd" + string(packet[:24])
		secret := lab.Value(hkdf.Key(sha256.New, v.hex(t, "client key"), nil, info, 24))(t)
		password := base64.StdEncoding.EncodeToString(secret)
		if got := v.one(t, "ice-pwd"); got != password {
			t.Errorf("%s: ice-pwd %s, want %s", path, got, password)
		}
		var into [stun.MaxPacket]byte
		got, ok := stun.Packet(&into, message)
		verdict := "ok"
		switch {
		case !ok || !bytes.Equal(got, packet):
			verdict = "wrong"
		case !stun.Signed(message, password):
			verdict = "unsigned"
		}
		if want := v.one(t, "verdict"); verdict != want {
			t.Errorf("%s: got %s, want %s", path, verdict, want)
		}
	}
}
