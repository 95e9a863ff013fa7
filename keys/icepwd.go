package keys

import "encoding/base64"

const (
	labelICEPassword = "sallyport 1 ice-pwd"
	icePasswordLen   = 24 // bytes
)

// ICEPassword is the password of a STUN request: 24 bytes in base64.
type ICEPassword [icePasswordLen / 3 * 4]byte

// ICEPassword returns the password that signs the STUN request with the packet of this nonce of 24 bytes, and the
// response to it. It is derived when it is needed: only browsers need it. The zero Key has none: ICEPassword panics.
func (k Key) ICEPassword(nonce []byte) ICEPassword {
	if k.m == nil {
		panic("keys: no key for an ice-pwd")
	}
	e := extract(&(*k.m).master)
	block := e.expand(labelICEPassword, nonce...)
	var text ICEPassword
	base64.StdEncoding.Encode(text[:], block[:icePasswordLen])
	return text
}
