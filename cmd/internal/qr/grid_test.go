package qr

import (
	"image/color"
	"strings"
	"testing"

	"github.com/boombuler/barcode/qr"
)

// gridOf is the modules of a code that another library drew.
func gridOf(t *testing.T, text string, level qr.ErrorCorrectionLevel, mode qr.Encoding) *grid {
	t.Helper()
	code, err := qr.Encode(text, level, mode)
	if err != nil {
		t.Fatal(err)
	}
	g := &grid{size: code.Bounds().Dx()}
	for y := range g.size {
		for x := range g.size {
			g.dark = append(g.dark, color.GrayModel.Convert(code.At(x, y)).(color.Gray).Y < 0x80)
		}
	}
	return g
}

// TestGrids reads codes of every version and level, undamaged and with as many wrong modules as a
// block of the level can mend for certain.
func TestGrids(t *testing.T) {
	seen := make(map[int]bool)
	for level, most := range map[qr.ErrorCorrectionLevel]int{qr.L: 2953, qr.M: 2331, qr.Q: 1663, qr.H: 1273} {
		for n := 1; n <= most; n += 1 + n/map[bool]int{true: 17, false: 6}[level == qr.L] {
			text := strings.Repeat("spa1Kq-_x7", n/10+1)[:n]
			g := gridOf(t, text, level, qr.Unicode)
			seen[g.size] = true
			if got, err := g.text(); err != nil || got != text {
				t.Fatalf("level %v, %d characters, %d modules: %v", level, n, g.size, err)
			}
			for i := range 3 { // three codewords in the data: every block has checks for as many, but the least
				if g.size == 21 && level == qr.L && i > 1 {
					break
				}
				at := (g.size-1-4*i)*g.size + g.size - 1
				g.dark[at] = !g.dark[at]
			}
			if got, err := g.text(); err != nil || got != text {
				t.Fatalf("damaged, level %v, %d characters, %d modules: %v", level, n, g.size, err)
			}
		}
	}
	if len(seen) != 40 {
		t.Errorf("%d of 40 versions were read", len(seen))
	}
}

func TestOtherModes(t *testing.T) {
	for _, c := range []struct {
		text string
		mode qr.Encoding
	}{{"0123456789012", qr.Numeric}, {"01234567", qr.Numeric}, {"012345", qr.Numeric}, {"SPA1 A:B", qr.AlphaNumeric}, {"SPA1 A:B-C", qr.AlphaNumeric}, {"HTTP://X9", qr.AlphaNumeric}} {
		if got, err := gridOf(t, c.text, qr.M, c.mode).text(); err != nil || got != c.text {
			t.Errorf("%s: got %q, %v", c.text, got, err)
		}
	}
}

func FuzzGrid(f *testing.F) {
	f.Add(1, []byte("seed"))
	f.Add(7, []byte{0xff, 0, 0xaa})
	f.Fuzz(func(t *testing.T, version int, seed []byte) {
		if version < 0 || version > 41 || len(seed) == 0 {
			return
		}
		g := &grid{size: 17 + 4*version}
		for i := range g.size * g.size {
			g.dark = append(g.dark, seed[i/8%len(seed)]>>(i%8)&1 == 1)
		}
		g.text()
		segments(seed, max(1, min(version, 40)))
	})
}
