package main

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // pictures are recognised by their contents
	_ "image/png"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"
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
	source := gozxing.NewLuminanceSourceFromImage(picture)
	for _, light := range []gozxing.LuminanceSource{source, source.Invert()} {
		if text, ok := scanAs(light); ok {
			return text, nil
		}
	}
	return "", errors.New("no QR code is to be found in the picture")
}

// scanAs tries the ways in which a code may be there: as a photo, and as nothing but the code.
func scanAs(source gozxing.LuminanceSource) (string, bool) {
	for _, hint := range []gozxing.DecodeHintType{gozxing.DecodeHintType_TRY_HARDER, gozxing.DecodeHintType_PURE_BARCODE} {
		for _, binarizer := range []gozxing.Binarizer{gozxing.NewHybridBinarizer(source), gozxing.NewGlobalHistgramBinarizer(source)} {
			bitmap, err := gozxing.NewBinaryBitmap(binarizer)
			if err != nil {
				continue
			}
			result, err := qrcode.NewQRCodeReader().Decode(bitmap, map[gozxing.DecodeHintType]any{hint: true})
			if err == nil {
				return result.GetText(), true
			}
		}
	}
	return "", false
}
