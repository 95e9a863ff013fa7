package enrol

import (
	"fmt"
	"image"
	"image/color"
	"io"
	"strings"

	"github.com/boombuler/barcode/qr"
)

// A Code is a QR code (ISO/IEC 18004): size modules in each direction, without a margin.
type Code struct {
	size int
	dark func(x, y int) bool // false outside
}

// The margin that readers need, and the pixels of a module in a picture.
const (
	quiet = 4
	scale = 8
)

// Encode makes the code of a token. More error correction reads better from a screen; a long token only fits with less.
func Encode(token string) (*Code, error) {
	for _, level := range []qr.ErrorCorrectionLevel{qr.M, qr.L} {
		picture, err := qr.Encode(token, level, qr.Unicode)
		if err != nil {
			continue // too long for this level
		}
		size := picture.Bounds().Dx()
		return &Code{size: size, dark: func(x, y int) bool {
			if x < 0 || y < 0 || x >= size || y >= size {
				return false
			}
			return color.GrayModel.Convert(picture.At(x, y)).(color.Gray).Y < 0x80
		}}, nil
	}
	return nil, fmt.Errorf("the token has %d characters, more than a QR code holds: use --out", len(token))
}

// Image returns the code as a picture with its margin.
func (c *Code) Image() image.Image {
	side := (c.size + 2*quiet) * scale
	picture := image.NewPaletted(image.Rect(0, 0, side, side), color.Palette{color.White, color.Black})
	for y := range side {
		for x := range side {
			if c.dark(x/scale-quiet, y/scale-quiet) {
				picture.SetColorIndex(x, y, 1)
			}
		}
	}
	return picture
}

// Draw draws the code with two modules per character, one above the other. With colours it is black on white. Without,
// it assumes a terminal with a dark background, where drawn blocks are light.
func (c *Code) Draw(w io.Writer, colours bool) error {
	before, after := "", "\n"
	if colours {
		before, after = "\x1b[97;40m", "\x1b[0m\n"
	}
	_, err := io.WriteString(w, c.blocks(quiet, false, before, after))
	return err
}

// Print returns the code for white paper, with ink where it is dark. The paper is its margin.
func (c *Code) Print(before string) string { return c.blocks(0, true, before, "\n") }

// blocks returns the code in lines, with ink where it is dark, or where it is not.
func (c *Code) blocks(margin int, ink bool, before, after string) string {
	drawn := map[[2]bool]string{{true, true}: "█", {true, false}: "▀", {false, true}: "▄", {false, false}: " "}
	var b strings.Builder
	for y := -margin; y < c.size+margin; y += 2 {
		b.WriteString(before)
		for x := -margin; x < c.size+margin; x++ {
			b.WriteString(drawn[[2]bool{c.dark(x, y) == ink, c.dark(x, y+1) == ink}])
		}
		b.WriteString(after)
	}
	return b.String()
}
