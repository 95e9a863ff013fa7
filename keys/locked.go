package keys

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"sallyport/keys/place"
)

var (
	// ErrLocked means that the profile's keys are sealed: StoredProfile.Unlock opens them.
	ErrLocked = errors.New("the profile is locked with a passphrase")
	// ErrChanged means that the profile's file has changed since it was read. It was left as it is: read it again.
	ErrChanged = errors.New("was changed by another program in the meantime")
	// ErrPassphrase means that the passphrase is wrong, or that the file was changed since it was locked: the two cannot
	// be distinguished.
	ErrPassphrase = errors.New("wrong passphrase, or the file was changed since it was locked")
)

// A StoredProfile is a host profile as stored in its file: with its keys, or locked.
type StoredProfile struct {
	Profile       // without Gate, ID and Key where it is locked
	lock    *lock // nil: not locked
}

// A lock describes how a profile's keys are sealed: with XChaCha20-Poly1305, under the key that Argon2id (RFC 9106)
// derives from the passphrase.
type lock struct {
	keyring string // names the passphrase in the desktop's keyring; empty: a person knows it
	memory  uint32 // KiB
	passes  uint32
	lanes   uint8
	salt    []byte
	sealed  []byte // nonce, then the sealed keys
}

const (
	lockLabel         = "sallyport 1 locked profile"
	lockRecoveryLabel = "sallyport 1 locked recovery profile"
	saltSize          = 16
	plainSize         = Size + 8 + Size // gate key, id, key
)

// The most that reading a file may cost, whoever wrote it.
const (
	minLockMemory, maxLockMemory = 8 << 10, 256 << 10 // KiB
	maxLockPasses, maxLockLanes  = 10, 8
)

// sealedSize is the length of the sealed keys with their nonce.
const sealedSize = chacha20poly1305.NonceSizeX + plainSize + chacha20poly1305.Overhead

// Lock seals the keys of a valid profile with a passphrase. If keyring is set, the desktop's keyring holds the
// passphrase under that name; it must then be impossible to guess, because opening is made cheap. The other fields stay
// readable and are authenticated: otherwise an attacker could change the address that is knocked on.
func (p *Profile) Lock(passphrase []byte, keyring string) (*StoredProfile, error) {
	if err := p.Valid(); err != nil {
		return nil, err
	}
	if err := validKeyring(keyring); err != nil {
		return nil, err
	}
	// RFC 9106, section 4: the second recommended choice, for machines without 2 GiB to spare.
	s := &StoredProfile{Profile: *p, lock: &lock{keyring: keyring, memory: 64 << 10, passes: 3, lanes: 4,
		salt: make([]byte, saltSize)}}
	if keyring != "" {
		s.lock.memory, s.lock.passes, s.lock.lanes = minLockMemory, 1, 1
	}
	s.Gate, s.ID, s.Key = GateKey{}, 0, Key{}
	rand.Read(s.lock.salt)
	aead, err := s.lock.aead(passphrase)
	if err != nil {
		return nil, err
	}
	plain := append(binary.BigEndian.AppendUint64(append([]byte(nil), p.Gate.bytes()...), uint64(p.ID)), p.Key.bytes()...)
	nonce := make([]byte, chacha20poly1305.NonceSizeX, sealedSize)
	rand.Read(nonce)
	s.lock.sealed = aead.Seal(nonce, nonce, plain, s.bound(s.label()))
	return s, nil
}

// Locked reports whether the keys are sealed.
func (s *StoredProfile) Locked() bool { return s.lock != nil }

// Keyring returns the name of the passphrase in the desktop's keyring; empty if a person types it.
func (s *StoredProfile) Keyring() string {
	if s.lock == nil {
		return ""
	}
	return s.lock.keyring
}

// Unlock opens the keys. Its error is ErrPassphrase. A profile that is not locked opens
// with any passphrase.
func (s *StoredProfile) Unlock(passphrase []byte) (*Profile, error) {
	p := s.Profile
	if s.lock == nil {
		return &p, nil
	}
	aead, err := s.lock.aead(passphrase)
	if err != nil {
		return nil, err
	}
	nonce, sealed := s.lock.sealed[:chacha20poly1305.NonceSizeX], s.lock.sealed[chacha20poly1305.NonceSizeX:]
	plain, err := aead.Open(nil, nonce, sealed, s.bound(s.label()))
	if err != nil && s.Recovery { // earlier programs did not bind that
		plain, err = aead.Open(nil, nonce, sealed, s.bound(lockLabel))
	}
	if err != nil {
		return nil, ErrPassphrase
	}
	p.Gate = GateKeyFromBytes([Size]byte(plain[:Size]))
	p.ID = ID(binary.BigEndian.Uint64(plain[Size : Size+8]))
	p.Key = KeyFromBytes([Size]byte(plain[Size+8:]))
	return &p, nil
}

func (l *lock) aead(passphrase []byte) (cipher.AEAD, error) {
	return chacha20poly1305.NewX(argon2.IDKey(passphrase, l.salt, l.passes, l.memory, l.lanes, chacha20poly1305.KeySize))
}

func (s *StoredProfile) label() string {
	if s.Recovery {
		return lockRecoveryLabel
	}
	return lockLabel
}

// bound returns what is authenticated together with the keys: everything else in the file.
func (s *StoredProfile) bound(label string) []byte {
	b := s.appendBinary([]byte(label))
	b = appendText(b, s.lock.keyring)
	b = binary.BigEndian.AppendUint32(b, s.lock.memory)
	b = binary.BigEndian.AppendUint32(b, s.lock.passes)
	b = append(b, s.lock.lanes)
	return append(b, s.lock.salt...)
}

type rawLock struct {
	Keyring string `toml:"keyring"`
	Memory  int64  `toml:"memory"`
	Passes  int64  `toml:"passes"`
	Lanes   int64  `toml:"lanes"`
	Salt    string `toml:"salt"`
	Sealed  string `toml:"sealed"`
}

// lock reads the table locked. Bounds keep a file from costing more time than a person would wait, or more memory than
// a machine has.
func (r *reader) lock(raw *rawLock) *lock {
	if !r.needs("locked.memory", "locked.passes", "locked.lanes", "locked.salt", "locked.sealed") {
		return nil
	}
	r.must("locked.keyring", validKeyring(raw.Keyring))
	r.within("locked.memory", raw.Memory, minLockMemory, maxLockMemory)
	r.within("locked.passes", raw.Passes, 1, maxLockPasses)
	r.within("locked.lanes", raw.Lanes, 1, maxLockLanes)
	return &lock{
		keyring: raw.Keyring, memory: uint32(raw.Memory), passes: uint32(raw.Passes), lanes: uint8(raw.Lanes),
		salt: r.bytes("locked.salt", raw.Salt, saltSize), sealed: r.bytes("locked.sealed", raw.Sealed, sealedSize),
	}
}

func (r *reader) within(key string, n, low, high int64) {
	if n < low || n > high {
		r.must(key, fmt.Errorf("must be %d to %d", low, high))
	}
}

func (r *reader) bytes(key, text string, size int) []byte {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != size {
		r.must(key, fmt.Errorf("is not %d bytes in base64", size))
	}
	return b
}

// validKeyring checks the name of a passphrase in a keyring: it needs no escapes in TOML.
func validKeyring(name string) error {
	if len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return errors.New("a name in the keyring has at most 64 lower-case letters, digits and hyphens")
	}
	return nil
}

// text returns the value of locked.
func (l *lock) text() string {
	keyring := ""
	if l.keyring != "" {
		keyring = fmt.Sprintf("keyring = %q, ", l.keyring)
	}
	return fmt.Sprintf("{ %smemory = %d, passes = %d, lanes = %d, salt = %q, sealed = %q }", keyring,
		l.memory, l.passes, l.lanes,
		base64.StdEncoding.EncodeToString(l.salt), base64.StdEncoding.EncodeToString(l.sealed))
}

// WriteStored is WriteProfile for a profile that may be locked.
func WriteStored(dir string, s *StoredProfile, replace bool) error {
	path := filepath.Join(dir, s.Name+Suffix)
	if err := s.valid(path); err != nil {
		return err
	}
	how := place.OnlyNew
	if replace {
		how = place.EitherWay
	}
	return place.Write(path, s.text(), how, place.ForOwner)
}

// valid returns an error if the profile must not be written to path.
func (s *StoredProfile) valid(path string) error {
	if s.lock == nil {
		if err := s.Valid(); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		return nil
	}
	if bad := s.firstInvalid(true); bad != nil {
		return fmt.Errorf("writing %s: keys: a profile's %s: %w", path, bad.key, bad.err)
	}
	return nil
}

// ReplaceStored replaces a profile with one that was made from it, if the file still says the same: a new key may have
// been imported while a person was asked for a passphrase. Otherwise its error is ErrChanged.
func ReplaceStored(dir string, before, after *StoredProfile) error {
	unlock, err := place.Lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	path := filepath.Join(dir, before.Name+Suffix)
	now, err := ReadStored(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Equal(now.text(), before.text()) {
		return fmt.Errorf("%s %w", path, ErrChanged)
	}
	if err != nil {
		return err
	}
	path = filepath.Join(dir, after.Name+Suffix)
	if err := after.valid(path); err != nil {
		return err
	}
	return place.WriteLocked(path, after.text(), place.EitherWay, place.ForOwner)
}

// text returns the profile's file.
func (s *StoredProfile) text() []byte { return s.textWith(s.lock) }
