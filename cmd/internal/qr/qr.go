// Package qr reads QR codes off pictures (ISO/IEC 18004, model 2): drawn ones and photos, also from
// the side. The libraries that do so cost every start of a program that has them, for tables that
// only reading needs, and a knock has no time for that.
//
// A picture goes the way of the files: qr.go decodes it and tells dark from light, find.go finds the
// three corners and looks at the modules, grid.go takes the codewords out of them, correct.go mends
// those and grid.go reads the text.
package qr

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/draw"
	_ "image/jpeg" // pictures are recognised by their contents
	_ "image/png"
)

// maxPixels is more than cameras have, and what a hostile picture may cost.
const maxPixels = 40_000_000

// IsPicture reports whether a file begins as a PNG or a JPEG does.
func IsPicture(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\x89PNG\r\n\x1a\n")) || bytes.HasPrefix(data, []byte("\xff\xd8\xff"))
}

// Read returns the text of the QR code in a picture, PNG or JPEG, of at most 40 million pixels. Its error
// does not echo what was read.
func Read(data []byte) (string, error) {
	size, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return "", errors.New("the picture is damaged")
	}
	if size.Width <= 0 || size.Height <= 0 || size.Width > maxPixels/size.Height {
		return "", fmt.Errorf("the picture is too large: %d by %d pixels", size.Width, size.Height)
	}
	grey, err := decode(data)
	if err != nil {
		return "", errors.New("the picture is damaged")
	}
	for _, part := range []int{1, 2, 4} {
		if text, ok := scanGrey(shrink(grey, part)); ok {
			return text, nil
		}
	}
	return "", errors.New("no QR code found in the picture")
}

// decode returns the picture in grey: the colours are not kept in memory.
func decode(data []byte) (*image.Gray, error) {
	picture, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	grey := image.NewGray(image.Rect(0, 0, picture.Bounds().Dx(), picture.Bounds().Dy()))
	draw.Draw(grey, grey.Rect, image.White, image.Point{}, draw.Src) // what is transparent is seen on paper
	draw.Draw(grey, grey.Rect, picture, picture.Bounds().Min, draw.Over)
	return grey, nil
}

// shrink returns a picture at a part of its size: noise goes away where points become one.
func shrink(picture *image.Gray, part int) *image.Gray {
	if part == 1 {
		return picture
	}
	small := image.NewGray(image.Rect(0, 0, picture.Rect.Dx()/part, picture.Rect.Dy()/part))
	for y := range small.Rect.Dy() {
		for x := range small.Rect.Dx() {
			sum := 0
			for dy := range part {
				for _, v := range picture.Pix[(y*part+dy)*picture.Stride+x*part:][:part] {
					sum += int(v)
				}
			}
			small.Pix[y*small.Stride+x] = uint8(sum / (part * part))
		}
	}
	return small
}

// scanGrey looks for a code that is dark on light, or light on dark.
func scanGrey(grey *image.Gray) (string, bool) {
	if text, ok := shaded(grey).read(); ok {
		return text, true
	}
	return shaded(inverted(grey)).read()
}

func inverted(grey *image.Gray) *image.Gray {
	out := image.NewGray(grey.Rect)
	for i, v := range grey.Pix {
		out.Pix[i] = ^v
	}
	return out
}

// shaded tells dark from light by what is around a point, an eighth of the picture: a photo is
// not everywhere equally bright.
func shaded(grey *image.Gray) *picture {
	w, h := grey.Rect.Dx(), grey.Rect.Dy()
	// Of all above and to the left. They may run over, and what is around a point is right all the
	// same: that is less than 2^32 in a picture of maxPixels.
	sums := make([]uint32, (w+1)*(h+1))
	for y := range h {
		var row uint32
		for x := range w {
			row += uint32(grey.Pix[y*grey.Stride+x])
			sums[(y+1)*(w+1)+x+1] = sums[y*(w+1)+x+1] + row
		}
	}
	reach := max(w, h)/16 + 1
	p := &picture{w: w, h: h, dark: make([]bool, w*h)}
	for y := range h {
		top, bottom := max(0, y-reach), min(h, y+reach+1)
		for x := range w {
			left, right := max(0, x-reach), min(w, x+reach+1)
			around := sums[bottom*(w+1)+right] - sums[top*(w+1)+right] - sums[bottom*(w+1)+left] + sums[top*(w+1)+left]
			p.dark[y*w+x] = uint64(grey.Pix[y*grey.Stride+x])*uint64((right-left)*(bottom-top))*100 < uint64(around)*90
		}
	}
	return p
}
