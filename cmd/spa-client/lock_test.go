package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/boombuler/barcode"
	qrcode "github.com/boombuler/barcode/qr"
	"github.com/rogpeppe/go-internal/testscript"

	"sallyport/cmd/internal/cli"
	"sallyport/cmd/internal/qr"
	"sallyport/keys"
)

// testMain is main, with a keyring in a directory where the script has one.
func testMain() {
	dir := os.Getenv("TEST_RING")
	if dir == "" {
		main()
		return
	}
	os.Exit(cli.Main("spa-client", (&app{ring: fileRing(dir)}).root()))
}

// fileRing is a keyring as a directory of files.
type fileRing string

func (r fileRing) Get(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(r), name))
	return string(b), err
}

func (r fileRing) Set(name, passphrase string) error {
	return os.WriteFile(filepath.Join(string(r), name), []byte(passphrase), 0o600)
}

func (r fileRing) Delete(name string) error { return os.Remove(filepath.Join(string(r), name)) }

// rotatedCommand is "rotated [CHANGE]...": it writes a token of a new key of the gateway's client
// to the file token. A change is another server, client, address or gate, or one service more.
func rotatedCommand(ts *testscript.TestScript, neg bool, args []string) {
	p := *gatewayOf(ts).profile
	p.ID, p.Key = keys.NewID(), keys.NewKey()
	for _, arg := range args {
		switch arg {
		case "server":
			p.ServerID = keys.NewServerID()
		case "client":
			p.Client = "bob"
		case "address":
			p.Address = "moved.example.net"
		case "gate":
			p.Gate = keys.NewGateKey()
		case "service":
			p.Services = map[string][]string{"ssh": {"tcp/2222"}, "imap": {"tcp/143"}}
		default:
			ts.Fatalf("rotated: no change %s", arg)
		}
	}
	g := gatewayOf(ts)
	g.mu.Lock()
	g.client = &keys.Client{Name: p.Client, ID: p.ID, Key: p.Key}
	g.profile = &p
	g.mu.Unlock()
	ts.Check(os.WriteFile(ts.MkAbs("token"), []byte(p.Token()+"\n"), 0o600))
}

// holdsCommand is "[!] holds FILE": whether a host's file has the keys of the file token in clear.
func holdsCommand(ts *testscript.TestScript, neg bool, args []string) {
	p, err := keys.ParseToken(ts.ReadFile("token"))
	ts.Check(err)
	text := ts.ReadFile(args[0])
	for _, secret := range []string{p.Key.Reveal(), p.Gate.Reveal(), p.ID.String()} {
		if strings.Contains(text, secret) == neg {
			ts.Fatalf("%s holds a key: %v", args[0], !neg)
		}
	}
}

// codeOf is a picture with the QR code of a token somewhere in it.
func codeOf(token string) (*image.Gray, error) {
	code, err := qrcode.Encode(token, qrcode.M, qrcode.Unicode)
	if err != nil {
		return nil, err
	}
	if code, err = barcode.Scale(code, code.Bounds().Dx()*8, code.Bounds().Dy()*8); err != nil {
		return nil, err
	}
	picture := image.NewGray(image.Rect(0, 0, code.Bounds().Dx()+200, code.Bounds().Dy()+120))
	draw.Draw(picture, picture.Bounds(), image.White, image.Point{}, draw.Src)
	draw.Draw(picture, code.Bounds().Add(image.Pt(90, 50)), code, image.Point{}, draw.Src)
	return picture, nil
}

// pictureCommand is "picture png|jpeg|dark|cut FILE": a picture of the QR code of the file token.
func pictureCommand(ts *testscript.TestScript, neg bool, args []string) {
	picture, err := codeOf(strings.TrimSpace(ts.ReadFile("token")))
	ts.Check(err)
	if args[0] == "dark" {
		for i := range picture.Pix {
			picture.Pix[i] = ^picture.Pix[i]
		}
	}
	var b bytes.Buffer
	if args[0] == "png" || args[0] == "dark" {
		ts.Check(png.Encode(&b, picture))
	} else {
		ts.Check(jpeg.Encode(&b, picture, &jpeg.Options{Quality: 60}))
	}
	if args[0] == "cut" {
		b.Truncate(b.Len() / 4)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o600))
}

// photographed turns a picture by some degrees, tilts it, and lays a shadow over it.
func photographed(p *image.Gray) *image.Gray {
	w, h := float64(p.Bounds().Dx()), float64(p.Bounds().Dy())
	out := image.NewGray(image.Rect(0, 0, int(w*1.2), int(h*1.2)))
	sin, cos := math.Sincos(7 * math.Pi / 180)
	for y := range out.Bounds().Dy() {
		for x := range out.Bounds().Dx() {
			u, v := float64(x)-w*0.6, float64(y)-h*0.6
			tilt := 1 + v/h*0.1
			u, v = (u*cos+v*sin)*tilt+w/2, (v*cos-u*sin)*tilt+h/2
			value := 200.0
			if u >= 0 && v >= 0 && u < w && v < h {
				value = float64(p.GrayAt(int(u), int(v)).Y)
			}
			out.SetGray(x, y, color.Gray{Y: uint8(30 + value*0.6 + 30*float64(x)/w)})
		}
	}
	return out
}

// TestScanPhotos: a code is read off photos, of tokens that are always the same, so that it is so always.
func TestScanPhotos(t *testing.T) {
	for i := range byte(10) {
		p := &keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201}, ServerID: keys.ServerID{i, 1}, Gate: keys.GateKeyFromBytes([32]byte{i, 2}),
			Client: "alice", ID: 3, Key: keys.KeyFromBytes([32]byte{i, 4}), Services: map[string][]string{"ssh": {"tcp/22"}}}
		picture, err := codeOf(p.Token())
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := jpeg.Encode(&b, photographed(picture), &jpeg.Options{Quality: 60}); err != nil {
			t.Fatal(err)
		}
		if text, err := qr.Read(b.Bytes()); err != nil || text != p.Token() {
			t.Errorf("photo %d: %v", i, err)
		}
	}
}

func TestScanRefuses(t *testing.T) {
	var empty, huge bytes.Buffer
	png.Encode(&empty, image.NewGray(image.Rect(0, 0, 100, 100)))
	png.Encode(&huge, image.NewGray(image.Rect(0, 0, 1, 1)))
	// The size stands behind the signature and the head of the first chunk, and is what is looked at first.
	large := slices.Clone(huge.Bytes())
	copy(large[16:], []byte{0, 1, 0, 0, 0, 1, 0, 0})
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing there": {empty.Bytes(), "no QR code"},
		"cut off":       {empty.Bytes()[:50], "damaged"},
		"no picture":    {[]byte("\x89PNG\r\n\x1a\n"), "damaged"},
		"too large":     {withChecksum(large), "too large: 65536 by 65536"},
	} {
		if !qr.IsPicture(c.data) {
			t.Errorf("%s is taken for no picture", name)
		}
		if text, err := qr.Read(c.data); err == nil || text != "" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %q, %v, want %s", name, text, err, c.want)
		}
	}
	if qr.IsPicture([]byte("spa1")) || qr.IsPicture(nil) {
		t.Error("a token is taken for a picture")
	}
}

// A keyring that does not take the passphrase, or a directory that takes no file, changes nothing.
func TestLockInRingFails(t *testing.T) {
	a := &app{config: t.TempDir(), ring: fileRing(filepath.Join(t.TempDir(), "none"))}
	cmd := a.lockCommand()
	cmd.SetContext(t.Context())
	p := &keys.StoredProfile{Profile: keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201}, ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
		Client: "alice", ID: keys.NewID(), Key: keys.NewKey()}}
	var exit *cli.Exit
	if err := a.lockInRing(cmd, p); !errors.As(err, &exit) || !strings.Contains(exit.Hint, "nothing was changed") {
		t.Errorf("no keyring: got %v", err)
	}
	ring := t.TempDir()
	a.ring = fileRing(ring)
	if err := a.lockInRing(cmd, p); err == nil {
		t.Error("there is no directory of hosts, and it was locked")
	}
	if left, _ := os.ReadDir(ring); len(left) != 0 {
		t.Errorf("the keyring keeps %v", left)
	}
}

// withChecksum mends the checksum of a PNG's first chunk.
func withChecksum(data []byte) []byte {
	binary.BigEndian.PutUint32(data[29:], crc32.ChecksumIEEE(data[12:29]))
	return data
}
