package keys

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
)

const (
	labelICEPassword = "sallyport 1 ice-pwd"
	icePasswordLen   = 24 // bytes: 32 characters
)

// ICEPassword returns the password that signs the STUN request with the packet of this nonce, and the response to it.
// It is derived when it is needed: only browsers need it. The zero Key has none: ICEPassword panics.
func (k Key) ICEPassword(nonce []byte) string {
	password, err := hkdf.Key(sha256.New, k.bytes(), nil, labelICEPassword+string(nonce), icePasswordLen)
	if err != nil || k.m == nil {
		panic("keys: no key for an ice-pwd")
	}
	return base64.StdEncoding.EncodeToString(password)
}
