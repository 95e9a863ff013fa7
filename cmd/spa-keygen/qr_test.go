package main

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os/exec"
	"strings"
	"testing"

	"sallyport/cmd/internal/enrol"
	"sallyport/keys"
	"sallyport/spa/lab"
)

// longToken returns a token of about this many characters.
func longToken(t *testing.T, size int) string {
	t.Helper()
	p := &keys.Profile{Name: "gw", Address: "gw.example.net", KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
		Client: "alice", ID: keys.NewID(), Key: keys.NewKey(), Receipts: true, Services: make(map[string][]string)}
	for i := 0; len(p.Token()) < size-50; i++ {
		p.Services["s"+strings.Repeat("x", i%8)+string(rune('a'+i/8%26))+
			string(rune('a'+i/208))] = []string{"tcp/60000-60010"}
	}
	if token := p.Token(); token != "" {
		return token
	}
	t.Fatal("no such token")
	return ""
}

// scan reads a QR code with the program that the documentation names.
func scan(t *testing.T, picture image.Image) string {
	t.Helper()
	zbarimg := lab.NeedProgram(t, "zbarimg", "apt-get install zbar-tools")
	var b bytes.Buffer
	lab.Must(t, png.Encode(&b, picture))
	cmd := exec.Command(zbarimg, "--quiet", "--nodbus", "--raw", "-")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", zbarimg, err, out)
	}
	return string(out)
}

// screen returns what a terminal with light text on a dark background shows, eight pixels a module.
func screen(drawn string) image.Image {
	lines := strings.Split(strings.TrimSuffix(drawn, "\n"), "\n")
	width := len([]rune(lines[0]))
	picture := image.NewGray(image.Rect(0, 0, width*8, len(lines)*16))
	for row, line := range lines {
		for column, r := range []rune(line) {
			for i := range 128 {
				upper := i < 64
				if r == '█' || r == '▀' && upper || r == '▄' && !upper {
					picture.SetGray(column*8+i%8, row*16+i/8, color.Gray{Y: 0xff})
				}
			}
		}
	}
	return picture
}

// TestCodesAreReadBack: the code contains the token, in the terminal and as a picture.
func TestCodesAreReadBack(t *testing.T) {
	for _, size := range []int{0, 300, 600, 1200} {
		token := longToken(t, size)
		code := lab.Value(enrol.Encode(token))(t)
		if got := scan(t, code.Image()); got != token+"\n" {
			t.Errorf("the picture of %d characters reads %q", len(token), got)
		}
		var plain, coloured bytes.Buffer
		lab.Must(t, code.Draw(&plain, false))
		if got := scan(t, screen(plain.String())); got != token+"\n" {
			t.Errorf("the terminal's %d characters read %q", len(token), got)
		}
		code.Draw(&coloured, true)
		without := strings.NewReplacer("\x1b[97;40m", "", "\x1b[0m", "").Replace(coloured.String())
		if without != plain.String() || strings.Count(coloured.String(), "\x1b[0m\n") != strings.Count(plain.String(), "\n") {
			t.Error("with colours something else is drawn")
		}
	}
}

func TestTokensTooLongForACode(t *testing.T) {
	if _, err := enrol.Encode(longToken(t, 2900)); err != nil {
		t.Errorf("2900 characters: %v", err)
	}
	if _, err := enrol.Encode(longToken(t, 3100)); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("3100 characters: got %v", err)
	}
}
