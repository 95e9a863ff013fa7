package fleet

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/service"
)

// labelTaken is the label with which a TakenKey is derived from the key of a bundle's age file.
const labelTaken = "sallyport 1 taken"

const takenForm = "sallyport-taken 1"

// MaxTaken is more bytes than the line of a Taken has.
const MaxTaken = 512

// ErrTaken means that a text is not the line of a Taken.
var ErrTaken = errors.New("not a line about a bundle that was taken over")

// A Taken is the report of a gateway that it has taken over a bundle. It holds no secret. It is one line:
//
//	sallyport-taken 1 FLEET GATEWAY SERIAL SINCE SIGNATURE
//
// SIGNATURE is of the text before it, by the bundle's TakenKey, in base64.
type Taken struct {
	Fleet     keys.FleetID
	Gateway   string
	Serial    int64
	Since     time.Time // UTC, whole seconds
	signature []byte
}

// signed returns the text that is signed.
func (t *Taken) signed() string {
	return fmt.Sprintf("%s %s %s %d %s", takenForm, t.Fleet, t.Gateway, t.Serial, t.Since.UTC().Format(time.RFC3339))
}

// String returns the line, without its end.
func (t *Taken) String() string {
	return t.signed() + " " + base64.StdEncoding.EncodeToString(t.signature)
}

// ParseTaken parses what String returns, with a line end or without. Its error is ErrTaken.
func ParseTaken(text []byte) (*Taken, error) {
	line, _ := strings.CutSuffix(string(text[:min(len(text), MaxTaken)]), "\n")
	fields := strings.Split(line, " ")
	if len(text) > MaxTaken || len(fields) != 7 {
		return nil, ErrTaken
	}
	t := &Taken{Gateway: fields[3]}
	var errs [5]error
	t.Fleet, errs[0] = keys.ParseFleetID(fields[2])
	errs[1] = service.ValidName(t.Gateway)
	t.Serial, errs[2] = strconv.ParseInt(fields[4], 10, 64)
	t.Since, errs[3] = time.Parse(time.RFC3339, fields[5])
	t.signature, errs[4] = base64.StdEncoding.Strict().DecodeString(fields[6])
	if errors.Join(errs[:]...) != nil || t.Serial < 1 || len(t.signature) != ed25519.SignatureSize || t.String() != line {
		return nil, ErrTaken
	}
	return t, nil
}

// By reports whether the line was signed with the TakenKey of the bundle for which Bundle.Taken returned public.
func (t *Taken) By(public ed25519.PublicKey) bool {
	return len(public) == ed25519.PublicKeySize && ed25519.Verify(public, []byte(t.signed()), t.signature)
}

// A TakenKey is the key of one bundle with which its gateway signs that it has taken it over. Only the gateway, and the
// office while it seals the bundle, can derive it: it comes from the random key of the bundle's age file. It
// prints as fleet.TakenKey(secret) and cannot be compared with ==.
type TakenKey struct {
	_   [0]func()
	key *ed25519.PrivateKey
}

func deriveTaken(fileKey []byte) TakenKey {
	seed, err := hkdf.Key(sha256.New, fileKey, nil, labelTaken, ed25519.SeedSize)
	if err != nil {
		panic(err) // only for more than 255 blocks
	}
	key := ed25519.NewKeyFromSeed(seed)
	return TakenKey{key: &key}
}

func (k TakenKey) public() ed25519.PublicKey { return k.key.Public().(ed25519.PublicKey) }

// Sign returns the report on the bundle with this head and key. The zero TakenKey panics.
func (k TakenKey) Sign(h Head, since time.Time) *Taken {
	t := &Taken{Fleet: h.Fleet, Gateway: h.Gateway, Serial: h.Serial, Since: since.UTC().Truncate(time.Second)}
	t.signature = ed25519.Sign(*k.key, []byte(t.signed()))
	return t
}

// Format prints fleet.TakenKey(secret) for every verb.
func (k TakenKey) Format(f fmt.State, _ rune) { io.WriteString(f, "fleet.TakenKey(secret)") }

// LogValue is fleet.TakenKey(secret).
func (k TakenKey) LogValue() slog.Value { return slog.StringValue("fleet.TakenKey(secret)") }

// MarshalText refuses: encoders must not write a key by accident.
func (k TakenKey) MarshalText() ([]byte, error) {
	return nil, errors.New("fleet: a key must not be written by accident")
}

// notingRecipient derives the TakenKey of what is sealed to it: age passes the key of a file only to recipients.
type notingRecipient struct {
	*age.HybridRecipient
	taken *TakenKey
}

// WrapWithLabels implements age.RecipientWithLabels.
func (r notingRecipient) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	*r.taken = deriveTaken(fileKey)
	return r.HybridRecipient.WrapWithLabels(fileKey)
}

// notingIdentity derives the TakenKey of what it opens.
type notingIdentity struct {
	*age.HybridIdentity
	taken *TakenKey
}

// Unwrap implements age.Identity.
func (i notingIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	fileKey, err := i.HybridIdentity.Unwrap(stanzas)
	if err == nil {
		*i.taken = deriveTaken(fileKey)
	}
	return fileKey, err
}
