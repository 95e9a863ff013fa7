package fleet

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// MaxBundle is the most bytes that a bundle has: enough for 200,000 clients.
const MaxBundle = 64 << 20

// MaxHead is more bytes than the readable part of a bundle has.
const MaxHead = 1024

// MaxFile is the most bytes that the file of a bundle has.
const MaxFile = MaxBundle + MaxHead

// Errors of Parse, Office.Verify and Open. A gateway keeps the bundle that it has.
var (
	// ErrFormat means that the bytes are not a bundle: cut off, too long, or something else.
	ErrFormat = errors.New("not a whole bundle")
	// ErrSignature means that another office signed it, or nobody did.
	ErrSignature = errors.New("not signed by this fleet's office")
	// ErrFleet means that it is for a gateway of another fleet.
	ErrFleet = errors.New("of another fleet")
	// ErrRecipient means that it is for another gateway, or for an earlier key of this one.
	ErrRecipient = errors.New("for another gateway")
	// ErrSealed means that this gateway's key does not open it.
	ErrSealed = errors.New("not sealed to this gateway's key")
	// ErrContents means that the office signed something that this version cannot use.
	ErrContents = errors.New("has contents that cannot be used")
)

// A Head is what everyone can read of a bundle.
type Head struct {
	Fleet   keys.FleetID
	Gateway string
	Serial  int64     // 1 and up: a gateway takes no lower one than it has seen
	Issued  time.Time // UTC, whole seconds
	Size    int64     // of the sealed part, in bytes
	Sum     [sha256.Size]byte
}

// signed returns the lines that the office signs.
func (h Head) signed() []byte {
	return fmt.Appendf(nil, "sallyport fleet bundle 1\nfleet %s\ngateway %s\nserial %d\nissued %s\nsize %d\nsha256 %x\n",
		h.Fleet, h.Gateway, h.Serial, h.Issued.UTC().Format(time.RFC3339), h.Size, h.Sum)
}

// A Bundle is a bundle whose form is right. Nothing else is known of it before Verify.
type Bundle struct {
	Head
	signature []byte
	sealed    []byte
	taken     ed25519.PublicKey
}

// Bytes returns the bundle as it is stored.
func (b *Bundle) Bytes() []byte { return append(b.Readable(), b.sealed...) }

// Readable returns the part of Bytes that everyone can read, with the empty line after it.
func (b *Bundle) Readable() []byte {
	return fmt.Appendf(b.signed(), "signature %s\n\n", base64.StdEncoding.EncodeToString(b.signature))
}

// Taken returns the key that verifies the report that the gateway has taken this bundle over: see Taken.By. Only a
// bundle that Seal made has it.
func (b *Bundle) Taken() ed25519.PublicKey { return b.taken }

// Sealed returns the rest of Bytes. Callers must not change it.
func (b *Bundle) Sealed() []byte { return b.sealed }

// Parse parses a bundle. It keeps text, which callers must not change. Its error is ErrFormat.
func Parse(text []byte) (*Bundle, error) {
	b, err := ParseStart(text)
	if err != nil {
		return nil, err
	}
	b.sealed = text[len(b.Readable()):]
	if int64(len(b.sealed)) != b.Size || sha256.Sum256(b.sealed) != b.Sum {
		return nil, ErrFormat
	}
	return b, nil
}

// ParseStart parses the readable part of a bundle and leaves the rest alone, so that Verify can come before Parse: what
// nobody has signed costs little. Its error is ErrFormat.
func ParseStart(text []byte) (*Bundle, error) {
	head, _, ok := bytes.Cut(text[:min(len(text), MaxHead)], []byte("\n\n"))
	if !ok {
		return nil, ErrFormat
	}
	return ParseReadable(text[:len(head)+2])
}

// ParseReadable parses what Bundle.Readable returns. The bundle can be verified and lacks the rest. Its error is
// ErrFormat.
func ParseReadable(text []byte) (*Bundle, error) {
	b := new(Bundle)
	lines := strings.Split(string(text), "\n")
	if len(lines) != 10 || b.parse(lines[1:8]) != nil ||
		!bytes.Equal(text, b.Readable()) { // one form: no other spelling of any number
		return nil, ErrFormat
	}
	return b, nil
}

// parse parses the lines after the first. It is lenient: Parse compares the result with the text.
func (b *Bundle) parse(lines []string) error {
	value := func(i int, name string) string {
		v, _ := strings.CutPrefix(lines[i], name+" ")
		return v
	}
	var errs [7]error
	b.Fleet, errs[0] = keys.ParseFleetID(value(0, "fleet"))
	b.Gateway = value(1, "gateway")
	errs[1] = service.ValidName(b.Gateway)
	b.Serial, errs[2] = strconv.ParseInt(value(2, "serial"), 10, 64)
	b.Issued, errs[3] = time.Parse(time.RFC3339, value(3, "issued"))
	b.Size, errs[4] = strconv.ParseInt(value(4, "size"), 10, 64)
	sum, err := hex.DecodeString(value(5, "sha256"))
	copy(b.Sum[:], sum)
	errs[5] = err
	b.signature, errs[6] = base64.StdEncoding.Strict().DecodeString(value(6, "signature"))
	if b.Serial < 1 || len(b.signature) != ed25519.SignatureSize {
		return ErrFormat
	}
	return errors.Join(errs[:]...)
}
