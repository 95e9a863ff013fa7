package recovery

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

func openBook(t *testing.T, path string) *Book {
	t.Helper()
	open := func() (*os.File, error) { return OpenFile(path) }
	b := New(open, open)
	lab.Must(t, b.Trouble())
	t.Cleanup(func() { b.Close() })
	return b
}

func newKey(t *testing.T, path string, uses int) keys.ID {
	t.Helper()
	id := keys.NewID()
	lab.Must(t, Add(path, id, uses))
	return id
}

func request(n byte) [16]byte { return [16]byte{n, 1} }

// TestAtMostItsUses: whatever happens between the uses of a key, in any order, it has no more than its uses: restarts,
// other keys, a client file that says more or nothing, retries, records that are torn or forged.
func TestAtMostItsUses(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		path := filepath.Join(t.TempDir(), "uses")
		uses := 1 + r.IntN(4)
		id := newKey(t, path, uses)
		b := openBook(t, path)
		granted := map[[16]byte]bool{}
		lastGood := [16]byte{}
		for range 40 {
			switch r.IntN(8) {
			case 0:
				b.Close() // as a killed server leaves it
				b = openBook(t, path)
			case 1:
				newKey(t, path, keys.MaxUses)
			case 2:
				lab.Must(t, b.Refresh())
			case 3:
				if granted[lastGood] { // else it is a use of its own
					_, err := b.Use(id, 1, lastGood, true, time.Now())
					lab.Must(t, err)
				}
			default:
				req := request(byte(r.IntN(256)))
				_, err := b.Use(id, []int{0, 1, uses, keys.MaxUses}[r.IntN(4)], req, false, time.Now())
				if err == nil {
					granted[req], lastGood = true, req
					uses--
				}
				if uses < 0 || err != nil && !errors.Is(err, ErrSpent) {
					t.Fatalf("seed %d: %d left, %v", seed, uses, err)
				}
			}
			uses = max(uses, 0)
			if count, ok := b.Count(id); !ok || count.Left(0) != uses {
				t.Fatalf("seed %d: counts %+v, want %d left", seed, count, uses)
			}
		}
	}
}

// TestTwoAtOnce: of many uses at one moment no more are good than the key has.
func TestTwoAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	id := newKey(t, path, 3)
	b := openBook(t, path)
	var wg sync.WaitGroup
	good := make(chan bool, 20)
	for n := range byte(20) {
		wg.Go(func() {
			if _, err := b.Use(id, 3, request(n), false, time.Now()); err == nil {
				good <- true
			}
		})
	}
	wg.Wait()
	if used, refused := b.Total(); len(good) != 3 || used != 3 || refused != 17 {
		t.Errorf("%d were good; counted %d and %d", len(good), used, refused)
	}
}

// TestRetryIsTheSameUse: a retry that the journal knows is the same use, and one that it has forgotten is another.
func TestRetryIsTheSameUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	id := newKey(t, path, 2)
	b := openBook(t, path)
	use := func(n byte, again bool, left int, want error) {
		t.Helper()
		if _, err := b.Use(id, 2, request(n), again, time.Now()); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if count, _ := b.Count(id); count.Left(2) != left {
			t.Errorf("%d are left, want %d", count.Left(2), left)
		}
	}
	use(1, false, 1, nil)
	b.Close()
	b = openBook(t, path)
	use(1, true, 1, nil)
	use(1, false, 0, nil)
	use(2, true, 0, ErrSpent)
	use(1, true, 0, nil)
}

// TestNoCount: a key whose count is lost has no uses: without a file, with a copy of it, an older one or a torn one.
// One that is limited by neither file is not a recovery key.
func TestNoCount(t *testing.T) {
	for name, lose := range map[string]func(path string){
		"removed": func(path string) { lab.Must(t, os.Remove(path)) },
		"a copy": func(path string) {
			text := lab.Value(os.ReadFile(path))(t)
			lab.Must(t, errors.Join(os.Remove(path), os.WriteFile(path, text, 0o600)))
		},
		"a copy beside it, put in its place": func(path string) {
			text := lab.Value(os.ReadFile(path))(t)
			lab.Must(t, errors.Join(os.WriteFile(path+".old", text, 0o600), os.Rename(path+".old", path)))
		},
		"emptied": func(path string) { lab.Must(t, os.Truncate(path, 0)) },
		"cut":     func(path string) { lab.Must(t, os.Truncate(path, 2*recordSize-1)) },
		"changed": func(path string) {
			text := lab.Value(os.ReadFile(path))(t)
			text[recordSize+19] = 99
			lab.Must(t, os.WriteFile(path, text, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "uses")
			id := newKey(t, path, 3)
			lose(path)
			b := openBook(t, path)
			if _, err := b.Use(id, 3, request(1), false, time.Now()); !errors.Is(err, ErrLost) {
				t.Errorf("got %v, want that the count is lost", err)
			}
			next := newKey(t, path, 1) // the one command that helps
			if _, err := b.Use(next, 1, request(2), false, time.Now()); err != nil {
				t.Errorf("a new key: %v", err)
			}
			if count, err := b.Use(keys.NewID(), 0, request(3), false, time.Now()); err != nil || count.ID != 0 {
				t.Errorf("an ordinary key: %+v, %v", count, err)
			}
		})
	}
}

// TestFileOfAnotherKind: a file that is not ours, or of another version, is refused and not overwritten.
func TestFileOfAnotherKind(t *testing.T) {
	newer := header()
	newer[len(magic)] = 2
	for _, text := range [][]byte{[]byte("a letter"), newer, header()[:20]} {
		path := filepath.Join(t.TempDir(), "uses")
		lab.Must(t, os.WriteFile(path, text, 0o600))
		open := func() (*os.File, error) { return OpenFile(path) }
		b := New(open, open)
		if _, err := b.Use(keys.NewID(), 1, request(1), false, time.Now()); err == nil || b.Trouble() == nil {
			t.Errorf("%q was taken", text)
		}
		if err := Add(path, keys.NewID(), 1); err == nil {
			t.Errorf("%q was added to", text)
		}
		if is := lab.Value(os.ReadFile(path))(t); !bytes.Equal(is, text) {
			t.Errorf("%q became %q", text, is)
		}
	}
	dir := t.TempDir()
	path, target := filepath.Join(dir, "uses"), filepath.Join(dir, "target")
	lab.Must(t, os.WriteFile(target, nil, 0o600))
	for _, link := range []func() error{func() error { return os.Symlink(target, path) },
		func() error { return os.Link(target, path) }, func() error { return os.Mkdir(path, 0o700) }} {
		lab.Must(t, link())
		if err := Add(path, keys.NewID(), 1); err == nil {
			t.Error("it wrote through another name")
		}
		lab.Must(t, os.Remove(path))
	}
}

// TestCopyMoves: the counts move to another file, and stay.
func TestCopyMoves(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "uses")
	id, other := newKey(t, path, 3), newKey(t, path, 1)
	b := openBook(t, path)
	_, err := b.Use(id, 3, request(1), false, time.Now())
	lab.Must(t, err)
	from, to := lab.Value(os.Open(path))(t), lab.Value(os.Create(filepath.Join(dir, "moved")))(t)
	lab.Must(t, errors.Join(Copy(to, from), from.Close(), to.Close(), os.Rename(to.Name(), path)))
	b = openBook(t, path)
	if count, ok := b.Count(id); !ok || count.Left(0) != 2 || count.Last.IsZero() {
		t.Errorf("got %+v", count)
	}
	if list := lab.Value(Read(path))(t); len(list) != 2 {
		t.Errorf("got %+v", list)
	}
	if _, err := b.Use(other, 1, request(2), false, time.Now()); err != nil {
		t.Error(err)
	}
	if list, err := Read(filepath.Join(dir, "none")); err != nil || list != nil {
		t.Errorf("without a file: %v, %v", list, err)
	}
}

// TestUseIsOnDisk: a use that cannot be written is refused, and counts while the server runs.
func TestUseIsOnDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	id := newKey(t, path, 2)
	read := func() (*os.File, error) { return os.Open(path) }
	b := New(read, read)
	if _, err := b.Use(id, 2, request(1), false, time.Now()); err == nil {
		t.Error("it was granted without a record")
	}
	lab.Must(t, b.Refresh())
	if count, _ := b.Count(id); count.Used != 1 {
		t.Errorf("got %+v", count)
	}
}

// TestOlderStaysLost: a key whose count is older than what is known has no uses, also after its file is read again.
func TestOlderStaysLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	id := newKey(t, path, 3)
	b := openBook(t, path)
	if older := b.Verify(func(Count) int { return 0 }); older != nil {
		t.Errorf("%v are older", older)
	}
	if older := b.Verify(func(Count) int { return 1 }); len(older) != 1 || older[0] != id {
		t.Errorf("%v are older, want %v", older, id)
	}
	lab.Must(t, b.Refresh())
	if _, err := b.Use(id, 3, request(1), false, time.Now()); !errors.Is(err, ErrLost) {
		t.Errorf("got %v, want that the count is lost", err)
	}
}

// TestNoUseIsRetried: a request whose id is that of an unused record is a use.
func TestNoUseIsRetried(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses")
	id := newKey(t, path, 1)
	if count, err := openBook(t, path).Use(id, 1, [16]byte{}, true, time.Now()); err != nil || count.Used != 1 {
		t.Errorf("got %+v, %v", count, err)
	}
}

// TestRecordsOfOneID: no key gets uses twice, and of two records the one with more uses counts, in any order.
func TestRecordsOfOneID(t *testing.T) {
	for _, used := range [][]int{{0, 2}, {2, 0}} {
		path := filepath.Join(t.TempDir(), "uses")
		id := newKey(t, path, 3)
		if Add(path, id, 3) == nil {
			t.Error("a key got uses twice")
		}
		f := lab.Value(OpenFile(path))(t)
		machine := lab.Value(machineID())(t)
		lab.Must(t, f.Truncate(recordSize))
		for _, n := range used {
			lab.Must(t, appendRecord(f, record{Count: Count{ID: id, Uses: 3, Used: n}}, machine))
		}
		lab.Must(t, f.Close())
		if count, _ := openBook(t, path).Count(id); count.Used != 2 {
			t.Errorf("of %v uses %d count", used, count.Used)
		}
	}
}

// TestImpossibleRecord: a record with uses that no key has is none, whatever its sum.
func TestImpossibleRecord(t *testing.T) {
	for _, c := range []Count{{ID: 1}, {Uses: 1}, {ID: 1, Uses: keys.MaxUses + 1}, {ID: 1, Uses: 1, Used: 2}} {
		if _, ok := decode((&record{Count: c}).encode(), 0); ok {
			t.Errorf("%+v is a record", c)
		}
	}
}

// TestNoBook: without a server nothing counts, so recovery keys are refused and others are not.
func TestNoBook(t *testing.T) {
	var b *Book
	if _, err := b.Use(1, 1, request(1), false, time.Now()); err == nil {
		t.Error("a recovery key was used")
	}
	_, err := b.Use(1, 0, request(1), false, time.Now())
	lab.Must(t, err)
}

func FuzzRecord(f *testing.F) {
	r := record{Count: Count{ID: 1, Uses: 3, Used: 1, Last: time.Unix(5, 6)}, request: request(1)}
	f.Add(r.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != recordSize {
			return
		}
		if r, ok := decode(b, 0); ok && !bytes.Equal(r.encode(), b) {
			t.Errorf("%x", b)
		}
	})
}
