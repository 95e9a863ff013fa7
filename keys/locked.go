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
	// ErrLocked is returned for a profile whose keys are sealed: StoredProfile.Unlock opens it.
	ErrLocked = errors.New("the profile is locked with a passphrase")
	// ErrChanged is returned where a profile is not any more what it was when it was read: its
	// file is left as it is. Read it again.
	ErrChanged = errors.New("was changed meanwhile by another program")
	// ErrPassphrase is returned where the passphrase is not the right one. A file that was
	// changed since it was locked cannot be told from that.
	ErrPassphrase = errors.New("wrong passphrase, or the file was changed since it was locked")
)

// A StoredProfile is a host profile as its file has it: with its keys, or locked.
type StoredProfile struct {
	Profile       // without Gate, ID and Key where it is locked
	lock    *lock // nil: not locked
}

// A lock is how a profile's keys are sealed: with XChaCha20-Poly1305 under the key that
// Argon2id (RFC 9106) makes of the passphrase.
type lock struct {
	keyring string // names the passphrase in the desktop's keyring; empty: a person knows it
	memory  uint32 // KiB
	passes  uint32
	lanes   uint8
	salt    []byte
	sealed  []byte // nonce, then the sealed keys
}

const (
	lockLabel = "sallyport 1 locked profile"
	saltSize  = 16
	plainSize = Size + 8 + Size // gate key, id, key
)

// What reading a file may cost whoever wrote it or not.
const (
	minLockMemory, maxLockMemory = 8 << 10, 256 << 10 // KiB
	maxLockPasses, maxLockLanes  = 10, 8
)

// sealedSize is how long the sealed keys are, with their nonce.
const sealedSize = chacha20poly1305.NonceSizeX + plainSize + chacha20poly1305.Overhead

// Lock seals the keys of a valid profile with a passphrase. A keyring is the name under
// which the desktop's keyring has it; then the passphrase must be one that cannot be guessed,
// because opening it is made cheap. Everything else stays readable, and cannot be changed
// without unlocking: an address that somebody slipped in would be knocked on.
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
	s.lock.sealed = aead.Seal(nonce, nonce, plain, s.bound())
	return s, nil
}

// Locked reports whether the keys are sealed.
func (s *StoredProfile) Locked() bool { return s.lock != nil }

// Keyring is the name of the passphrase in the desktop's keyring; empty where a person knows it.
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
	plain, err := aead.Open(nil, nonce, sealed, s.bound())
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

// bound is what the seal holds together with the keys: all that the file says beside them.
func (s *StoredProfile) bound() []byte {
	b := s.appendBinary([]byte(lockLabel))
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

// lock reads the table locked. Its bounds keep a file from costing more than a person
// would wait for, or a machine has.
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
		r.must(key, fmt.Errorf("is %d to %d", low, high))
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

// text is the value of locked.
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

// valid says why the profile is none to write to path.
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

// ReplaceStored writes a profile over the one that it was made from, if that is still what its
// file says: a person may have been asked for a passphrase in between, and a new key have come. It is
// ErrChanged otherwise.
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

// text is the profile's file.
func (s *StoredProfile) text() []byte { return s.textWith(s.lock) }
