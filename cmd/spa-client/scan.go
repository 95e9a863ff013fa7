package main

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	_ "image/jpeg" // pictures are recognised by their contents
	_ "image/png"
	"math"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"
	"github.com/makiuchi-d/gozxing/qrcode/decoder"
	"github.com/makiuchi-d/gozxing/qrcode/detector"
)

// maxPixels is more than cameras have, and what a hostile picture may cost.
const maxPixels = 40_000_000

// isPicture reports whether a file begins as a PNG or a JPEG does.
func isPicture(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\x89PNG\r\n\x1a\n")) || bytes.HasPrefix(data, []byte("\xff\xd8\xff"))
}

// scan reads the QR code in a picture.
func scan(data []byte) (string, error) {
	size, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return "", errors.New("the picture is damaged")
	}
	if size.Width <= 0 || size.Height <= 0 || size.Width > maxPixels/size.Height {
		return "", fmt.Errorf("the picture is too large: %d by %d pixels", size.Width, size.Height)
	}
	picture, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return "", errors.New("the picture is damaged")
	}
	for _, part := range []int{100, 75, 50, 33, 20} {
		if text, ok := scanGrey(shrink(picture, part)); ok {
			return text, nil
		}
	}
	return "", errors.New("no QR code is to be found in the picture")
}

// shrink returns a picture in grey, at some percent of its size. The finder of codes fails now
// and then at one size and not at another, and noise goes away where points become one.
func shrink(picture image.Image, percent int) *image.Gray {
	b := picture.Bounds()
	w, h := max(1, b.Dx()*percent/100), max(1, b.Dy()*percent/100)
	sums, counts := make([]uint32, w*h), make([]uint32, w*h)
	for y := range b.Dy() {
		row := min(y*h/b.Dy(), h-1) * w
		for x := range b.Dx() {
			at := row + min(x*w/b.Dx(), w-1)
			sums[at] += uint32(color.GrayModel.Convert(picture.At(b.Min.X+x, b.Min.Y+y)).(color.Gray).Y)
			counts[at]++
		}
	}
	grey := image.NewGray(image.Rect(0, 0, w, h))
	for i, n := range counts {
		grey.Pix[i] = uint8(sums[i] / max(1, n))
	}
	return grey
}

// scanGrey looks for a code that is dark on light, or light on dark.
func scanGrey(picture *image.Gray) (string, bool) {
	source := gozxing.NewLuminanceSourceFromImage(picture)
	if text, ok := scanAs(source); ok {
		return text, true
	}
	return scanAs(source.Invert())
}

// scanAs tries the ways in which a code may be there: as nothing but the code, and somewhere.
func scanAs(source gozxing.LuminanceSource) (string, bool) {
	for _, binarizer := range []gozxing.Binarizer{gozxing.NewHybridBinarizer(source), gozxing.NewGlobalHistgramBinarizer(source)} {
		bitmap, err := gozxing.NewBinaryBitmap(binarizer)
		if err != nil {
			continue
		}
		pure := map[gozxing.DecodeHintType]any{gozxing.DecodeHintType_PURE_BARCODE: true}
		if result, err := qrcode.NewQRCodeReader().Decode(bitmap, pure); err == nil {
			return result.GetText(), true
		}
		if bits, err := bitmap.GetBlackMatrix(); err == nil {
			if text, ok := readCode(bits); ok {
				return text, true
			}
		}
	}
	return "", false
}

// readCode looks for the three corners of a code and tries every size that it may have. The
// library's own detector trusts its first guess of the size, and of a large code that is
// photographed from the side it is wrong as often as not; what is read is proven by the
// code's own correction.
func readCode(bits *gozxing.BitMatrix) (string, bool) {
	finder := detector.NewFinderPatternFinder(bits, nil)
	corners, err := finder.Find(map[gozxing.DecodeHintType]any{gozxing.DecodeHintType_TRY_HARDER: true})
	if err != nil {
		return "", false
	}
	c := corner{bits, corners.GetTopLeft(), corners.GetTopRight(), corners.GetBottomLeft()}
	guess := c.guess()
	for off := range 6 {
		for _, version := range []int{guess + off, guess - off} {
			if version < 1 || version > 40 || off == 0 && version != guess {
				continue
			}
			if text, ok := c.read(17 + 4*version); ok {
				return text, true
			}
		}
	}
	return "", false
}

// corner is where the corners of a code are in a picture.
type corner struct {
	bits                          *gozxing.BitMatrix
	topLeft, topRight, bottomLeft *detector.FinderPattern
}

// guess is the version of the code, 1 to 40, that its corners suggest.
func (c *corner) guess() int {
	module := (c.topLeft.GetEstimatedModuleSize() + c.topRight.GetEstimatedModuleSize() + c.bottomLeft.GetEstimatedModuleSize()) / 3
	across := math.Hypot(c.topRight.GetX()-c.topLeft.GetX(), c.topRight.GetY()-c.topLeft.GetY())
	down := math.Hypot(c.bottomLeft.GetX()-c.topLeft.GetX(), c.bottomLeft.GetY()-c.topLeft.GetY())
	return int(math.Round(((across+down)/2/module + 7 - 17) / 4))
}

// read reads a code of so many modules, with whatever is found where its fourth corner's
// mark should be, and without.
func (c *corner) read(size int) (string, bool) {
	for _, around := range []float64{4, 8, 16, 0} {
		mark := c.mark(size, around)
		if mark == nil && around > 0 {
			continue
		}
		transform := detector.Detector_createTransform(c.topLeft, c.topRight, c.bottomLeft, mark, size)
		grid, err := detector.Detector_sampleGrid(c.bits, transform, size)
		if err != nil {
			continue
		}
		if result, err := decoder.NewDecoder().Decode(grid, nil); err == nil {
			return result.GetText(), true
		}
	}
	return "", false
}

// mark finds the alignment pattern nearest to the fourth corner, at most so many modules
// from where it would be in a code seen from straight ahead.
func (c *corner) mark(size int, around float64) *detector.AlignmentPattern {
	if around == 0 || size < 25 {
		return nil
	}
	between := float64(size - 7)
	module := math.Hypot(c.topRight.GetX()-c.topLeft.GetX(), c.topRight.GetY()-c.topLeft.GetY()) / between
	nearer := 1 - 3/between
	x := c.topLeft.GetX() + nearer*(c.topRight.GetX()-2*c.topLeft.GetX()+c.bottomLeft.GetX())
	y := c.topLeft.GetY() + nearer*(c.topRight.GetY()-2*c.topLeft.GetY()+c.bottomLeft.GetY())
	reach := around * module
	left, right := int(max(0, x-reach)), int(min(float64(c.bits.GetWidth()-1), x+reach))
	top, bottom := int(max(0, y-reach)), int(min(float64(c.bits.GetHeight()-1), y+reach))
	if float64(right-left) < 3*module || float64(bottom-top) < 3*module {
		return nil
	}
	mark, err := detector.NewAlignmentPatternFinder(c.bits, left, top, right-left, bottom-top, module, nil).Find()
	if err != nil {
		return nil
	}
	return mark
}
