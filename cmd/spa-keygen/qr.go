package main

import (
	"fmt"
	"image"
	"image/color"
	"io"
	"strings"

	"github.com/boombuler/barcode/qr"
)

// code is a QR code (ISO/IEC 18004): size modules in each direction, without a margin.
type code struct {
	size int
	dark func(x, y int) bool // false outside
}

// The margin that readers need, and the pixels of a module in a picture.
const (
	quiet = 4
	scale = 8
)

// encode makes the code of a token. More error correction reads better from a screen; a long token only fits with less.
func encode(token string) (*code, error) {
	for _, level := range []qr.ErrorCorrectionLevel{qr.M, qr.L} {
		picture, err := qr.Encode(token, level, qr.Unicode)
		if err != nil {
			continue // too long for this level
		}
		size := picture.Bounds().Dx()
		return &code{size: size, dark: func(x, y int) bool {
			if x < 0 || y < 0 || x >= size || y >= size {
				return false
			}
			return color.GrayModel.Convert(picture.At(x, y)).(color.Gray).Y < 0x80
		}}, nil
	}
	return nil, fmt.Errorf("the token has %d characters, more than a QR code holds: use --out", len(token))
}

// image returns the code as a picture with its margin.
func (c *code) image() image.Image {
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

// draw draws the code with two modules per character, one above the other. With colours it is black on white. Without,
// it assumes a terminal with a dark background, where drawn blocks are light.
func (c *code) draw(w io.Writer, colours bool) error {
	before, after := "", "\n"
	if colours {
		before, after = "\x1b[97;40m", "\x1b[0m\n"
	}
	_, err := io.WriteString(w, c.blocks(quiet, false, before, after))
	return err
}

// print returns the code for white paper, with ink where it is dark. The paper is its margin.
func (c *code) print(before string) string { return c.blocks(0, true, before, "\n") }

// blocks returns the code in lines, with ink where it is dark, or where it is not.
func (c *code) blocks(margin int, ink bool, before, after string) string {
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
