package setup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"sallyport/firewall"
	"sallyport/keys/quote"
	"sallyport/spa/config"
	"sallyport/spa/server/control"
)

// The settings that were applied last: the guard is loaded with them if server.toml has a mistake or cannot be read.
// They are in the state directory and in the directory of server.toml, where they are found even if the state directory
// is unknown. The latest are used, so older ones in a former state directory are not.
//
// The file has two places, written in turn, so one is intact after a crash:
//
//	 0  32  SHA-256 of what follows
//	32   8  number of the writing, big endian as all the rest
//	40   8  when it was written, nanoseconds since 1970
//	48   4  length of the directory's path
//	52   4  length of the text
//	56      the directory of server.toml, then its text
//
// All space is reserved when the file is created. Only root writes it: at a start as root, before the server drops its
// privileges, after a start by systemd ([Remember]), and after root's spa-server reload. The server's user may read it.
// Otherwise a compromised server could decide what is guarded at the
// next boot. A file that another user can write is ignored and replaced.
const (
	SettingsFile = "settings"
	lastGoodHead = 56
	lastGoodSize = 1<<20 + 8192 // of a place: server.toml has at most 1 MiB
	lastGoodMost = 1 << 32      // copies: a higher number was forged, to stay the latest
)

// defaultState is the usual state directory of a server whose state is not beside its settings.
const defaultState = "/var/lib/spa"

// ErrNeverGood is returned if no settings of the directory were ever applied.
var ErrNeverGood = errors.New("no settings were applied before")

// lastGood is the file, open for writing.
type lastGood struct {
	file *os.File
	last writing // of whatever directory
	next int64   // the place that is written next
}

// A writing is the content of one place of the file.
type writing struct {
	number uint64
	at     time.Time
	dir    string
	text   []byte
}

// openLastGood opens the file in a directory, or creates it.
func openLastGood(dir string) (*lastGood, error) {
	file, err := openTrusted(filepath.Join(dir, SettingsFile))
	if err != nil {
		return nil, err
	}
	g := &lastGood{file: file}
	for place := range int64(2) {
		if w, _ := readWriting(file, place); w.number > g.last.number { // on an error it is none
			g.last, g.next = w, 1-place
		}
	}
	return g, nil
}

// ErrNotTrusted is returned for a file that a user other than root can write.
var ErrNotTrusted = errors.New("users other than root can write it")

// openTrusted opens a file for writing. It makes a new one if the file is missing or not trusted.
func openTrusted(path string) (*os.File, error) {
	const flags = os.O_RDWR | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	file, err := os.OpenFile(path, flags, 0)
	if err == nil {
		if err = checkTrusted(file); err == nil {
			return file, nil
		}
		err = errors.Join(err, file.Close())
	}
	if !errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	if file, err = os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := showToServer(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// showToServer lets the server's user read root's file: its guard falls back to it. There are no secrets in it.
func showToServer(file *os.File) error {
	_, gid, ok := Account(SystemUser)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	if err := file.Chown(0, gid); err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return nil // without CAP_CHOWN only root can use it
		}
		return err
	}
	return file.Chmod(0o640)
}

// checkTrusted returns an error unless the file is a regular file that only root can write, or this process's user if
// that is an administrator. The server's user is none: a server that was taken over could have left the file.
func checkTrusted(file *os.File) error {
	if err := checkPlain(file); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != 0 && (owner != os.Geteuid() || isServer()) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s: %w", file.Name(), ErrNotTrusted)
	}
	return nil
}

func (g *lastGood) Close() error { return g.file.Close() }

// save writes the settings.
func (g *lastGood) save(w writing) error {
	b := w.encode()
	if len(b) > lastGoodSize {
		return errors.New("the settings are too long")
	}
	if err := g.preallocate(); err != nil {
		return err
	}
	if _, err := g.file.WriteAt(b, g.next*lastGoodSize); err != nil {
		return err
	}
	return g.file.Sync()
}

func (g *lastGood) preallocate() error {
	info, err := g.file.Stat()
	if err != nil || info.Size() >= 2*lastGoodSize {
		return err
	}
	_, err = g.file.WriteAt(make([]byte, 2*lastGoodSize-info.Size()), info.Size())
	return err
}

func (w writing) encode() []byte {
	b := make([]byte, sha256.Size, lastGoodHead+len(w.dir)+len(w.text))
	b = binary.BigEndian.AppendUint64(b, w.number)
	b = binary.BigEndian.AppendUint64(b, uint64(w.at.UnixNano()))
	b = binary.BigEndian.AppendUint32(b, uint32(len(w.dir)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(w.text)))
	b = append(append(b, w.dir...), w.text...)
	sum := sha256.Sum256(b[sha256.Size:])
	copy(b, sum[:])
	return b
}

var errNoWriting = errors.New("no complete copy of the settings")

// readWriting reads a place of the file, which anyone may have written.
func readWriting(file *os.File, place int64) (writing, error) {
	b := make([]byte, lastGoodSize)
	n, err := file.ReadAt(b, place*lastGoodSize)
	if n < lastGoodHead {
		return writing{}, errors.Join(errNoWriting, err)
	}
	b = b[:n]
	dir, text := uint64(binary.BigEndian.Uint32(b[48:])), uint64(binary.BigEndian.Uint32(b[52:]))
	end := lastGoodHead + dir + text
	if end > uint64(n) {
		return writing{}, errNoWriting
	}
	if sum := sha256.Sum256(b[sha256.Size:end]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return writing{}, errNoWriting
	}
	number := binary.BigEndian.Uint64(b[32:])
	if number > lastGoodMost {
		return writing{}, errNoWriting
	}
	return writing{
		number: number,
		at:     time.Unix(0, int64(binary.BigEndian.Uint64(b[40:]))),
		dir:    string(b[lastGoodHead : lastGoodHead+dir]),
		text:   slices.Clone(b[lastGoodHead+dir : end]),
	}, nil
}

// SaveSettings keeps the settings that a guard was loaded with, for the next boot: in the state directory, in that of
// server.toml, and wherever else older ones of this directory are. Only the state directory must be writable, but older
// settings must not stay anywhere.
func SaveSettings(c *config.Config, now time.Time) error {
	places := settingsPlaces(c.Dir, c.State)
	latest, highest := latestIn(places, c.Dir)
	next := writing{number: highest + 1, at: now, dir: c.Dir, text: c.Text()}
	var errs []error
	for _, place := range places {
		if err := saveIn(place, next, latest, place == places[0]); err != nil {
			errs = append(errs, fmt.Errorf("keeping a copy of the settings in %s: %w", place, err))
		}
	}
	return errors.Join(errs...)
}

// settingsPlaces are the directories in which settings of dir may be, each once: first the state directory, if it is
// known.
func settingsPlaces(dir, state string) []string {
	places := []string{dir, defaultState}
	if state != "" {
		places = append([]string{state}, places...)
	}
	return Distinct(places...)
}

// latestIn returns the latest settings of dir in these places, and the highest number of any. Numbers decide which are
// the latest, because a clock can be set back.
func latestIn(places []string, dir string) (latest writing, highest uint64) {
	for _, place := range places {
		for _, w := range writingsIn(place) {
			highest = max(highest, w.number)
			if w.dir == dir && w.after(latest) {
				latest = w
			}
		}
	}
	return latest, highest
}

// saveIn keeps the settings in a place, unless they are the latest there already. Must is for the state directory. In
// another place they are kept only beside server.toml or over older ones, and an error counts only if older ones stay.
func saveIn(place string, next, latest writing, must bool) error {
	was, err := lastWriting(place, next.dir)
	there := err == nil
	same := there && bytes.Equal(was.text, next.text)
	_, highest := latestIn([]string{place}, next.dir)
	if same && was.number == highest && !latest.after(was) || !there && !must && place != next.dir {
		return nil
	}
	g, err := openLastGood(place)
	if err == nil {
		err = errors.Join(g.save(next), g.Close())
	}
	switch {
	case err == nil || must:
		return err
	case !there || same:
		return nil
	}
	return fmt.Errorf("%w: if %s has a mistake at the next boot, these older ones would load the guard: rm %s",
		err, config.FileName, quote.Shell(filepath.Join(place, SettingsFile)))
}

// KeepSettings saves the settings that the running server has just reloaded. The server must not write them itself,
// because root trusts the file at boot. While the guard is on trial nothing is saved.
func KeepSettings(ctx context.Context, dir string, now time.Time) error {
	c, err := config.Load(dir)
	if err != nil {
		return err
	}
	status, err := AskStatus(ctx, c)
	if err != nil || !status.Firewall.Trial.IsZero() {
		return err
	}
	if status.Loaded.Settings != Loaded(c.Text(), nil).Settings {
		return fmt.Errorf("%s has changed again", config.FileName)
	}
	return SaveSettings(c, now)
}

// Remember saves the settings with which a server or a guard that does not run as root has just been started. Root does
// that for it. The settings that are in force are those of server.toml, or the last good ones, which stay.
func Remember(ctx context.Context, dir string, now time.Time) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := firewall.SweepIptables(); err != nil {
		return err
	}
	c, err := config.Load(dir)
	if err != nil {
		return nil // they are not in force
	}
	if there, err := firewall.Stands(); err != nil || !there && guards(c) {
		return err
	}
	err = KeepSettings(ctx, dir, now)
	if errors.Is(err, control.ErrNotRunning) {
		return SaveSettings(c, now)
	}
	return err
}

// LastGood returns the settings of dir that were applied last, and when. It looks in the state directory that
// server.toml names, as far as that can be read, beside server.toml, and in the default state directory, and returns
// the latest that it can trust and read. If there are none the error is ErrNeverGood.
func LastGood(dir string) (*config.Config, time.Time, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, time.Time{}, err
	}
	state, _ := config.StateDir(dir) // on an error it is not known
	var failed []error
	var last writing
	var found *config.Config
	for _, place := range settingsPlaces(dir, state) {
		w, err := lastWriting(place, dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoWriting) || err == nil && found != nil && !w.after(last) {
			continue // of another gateway, or older
		}
		var c *config.Config
		if err == nil {
			c, err = config.Parse(dir, filepath.Join(place, SettingsFile), w.text)
		}
		if err != nil {
			failed = append(failed, err) // by a newer version
			continue
		}
		found, last = c, w
	}
	if found != nil {
		return found, last.at, nil
	}
	if len(failed) == 0 {
		failed = []error{fmt.Errorf("%s: %w", dir, ErrNeverGood)}
	}
	return nil, time.Time{}, errors.Join(failed...)
}

// after reports whether w was written after other.
func (w writing) after(other writing) bool {
	return w.number > other.number || w.number == other.number && w.at.After(other.at)
}

// lastWriting reads the latest settings of dir from a place.
func lastWriting(place, dir string) (writing, error) {
	file, err := openTrustedForReading(place)
	if err != nil {
		return writing{}, err
	}
	defer file.Close()
	last, found := writing{}, false
	for _, w := range writingsOf(file) {
		if w.dir == dir && (!found || w.after(last)) {
			last, found = w, true
		}
	}
	if !found {
		return writing{}, errNoWriting
	}
	return last, nil
}

// writingsIn reads all intact copies in the file of a place; none if the file cannot be read or trusted.
func writingsIn(place string) []writing {
	file, err := openTrustedForReading(place)
	if err != nil {
		return nil
	}
	defer file.Close()
	return writingsOf(file)
}

func writingsOf(file *os.File) (list []writing) {
	for turn := range int64(2) {
		if w, err := readWriting(file, turn); err == nil {
			list = append(list, w)
		}
	}
	return list
}

// openTrustedForReading opens the file of a place.
func openTrustedForReading(place string) (*os.File, error) {
	file, err := openPlainFile(filepath.Join(place, SettingsFile))
	if err != nil {
		return nil, err
	}
	if err := checkTrusted(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// CheckSettings returns an error unless a directory has trusted settings of dir: ErrNotTrusted if users other than root
// can write them.
func CheckSettings(place, dir string) error {
	_, err := lastWriting(place, dir)
	return err
}
