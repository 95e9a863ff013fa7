package qr

import (
	"errors"
	"math/bits"
	"strings"
)

// A grid is the modules of a QR code (ISO/IEC 18004, model 2), size in each direction.
type grid struct {
	size int
	dark []bool
}

func (g *grid) at(x, y int) bool { return g.dark[y*g.size+x] }

var errGrid = errors.New("not a QR code")

// Error correction of each version: codewords in a block, and blocks, for the levels L, M,
// Q and H (ISO/IEC 18004, table 9).
var (
	blockChecks = [4][40]uint8{
		{7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28, 28, 28, 30, 30, 26, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
		{10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26, 26, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28},
		{13, 22, 18, 26, 18, 24, 18, 22, 20, 24, 28, 26, 24, 20, 30, 24, 28, 28, 26, 30, 28, 30, 30, 30, 30, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
		{17, 28, 22, 16, 22, 28, 26, 26, 24, 28, 24, 28, 22, 24, 24, 30, 28, 28, 26, 28, 30, 24, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
	}
	blockCounts = [4][40]uint8{
		{1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8, 8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25},
		{1, 1, 1, 2, 2, 4, 4, 4, 5, 5, 5, 8, 9, 9, 10, 10, 11, 13, 14, 16, 17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49},
		{1, 1, 2, 2, 4, 4, 6, 6, 8, 8, 8, 10, 12, 16, 12, 17, 16, 18, 21, 20, 23, 23, 25, 27, 29, 34, 34, 35, 38, 40, 43, 45, 48, 51, 53, 56, 59, 62, 65, 68},
		{1, 1, 2, 4, 4, 4, 5, 6, 8, 8, 11, 11, 16, 16, 18, 16, 19, 21, 25, 25, 25, 34, 30, 32, 35, 37, 40, 42, 45, 48, 51, 54, 57, 60, 63, 66, 70, 74, 77, 81},
	}
)

// text is what the code says. An error means that too much of it is not what it should be.
func (g *grid) text() (string, error) {
	version := (g.size - 17) / 4
	if version < 1 || version > 40 || 17+4*version != g.size {
		return "", errGrid
	}
	level, mask, ok := g.format()
	if !ok {
		return "", errGrid
	}
	data, ok := correct(g.codewords(version, mask), int(blockCounts[level][version-1]), int(blockChecks[level][version-1]))
	if !ok {
		return "", errGrid
	}
	return segments(data, version)
}

// format finds the level and the mask: the nearest of the 32 formats to either of the two
// places where it stands.
func (g *grid) format() (level, mask int, ok bool) {
	var near, far uint
	for i := range 15 {
		near = near<<1 | bit(g.at(formatPlace(i)))
		x, y := 8, g.size-1-i
		if i >= 7 {
			x, y = g.size-15+i, 8
		}
		far = far<<1 | bit(g.at(x, y))
	}
	best := 4 // three wrong bits can be told from another format
	for f := range uint(32) {
		for _, seen := range []uint{near, far} {
			if d := bits.OnesCount(seen ^ formatCode(f)); d < best {
				best, level, mask = d, []int{1, 0, 3, 2}[f>>3], int(f&7)
			}
		}
	}
	return level, mask, best < 4
}

// formatPlace is where bit i of the format stands around the upper left corner, the
// highest first.
func formatPlace(i int) (x, y int) {
	switch {
	case i < 6:
		return i, 8
	case i == 6:
		return 7, 8
	case i == 7:
		return 8, 8
	case i == 8:
		return 8, 7
	}
	return 8, 14 - i
}

// formatCode is a format with its BCH check, masked.
func formatCode(f uint) uint {
	rest := f << 10
	for i := 14; i >= 10; i-- {
		if rest>>i&1 == 1 {
			rest ^= 0x537 << (i - 10)
		}
	}
	return (f<<10 | rest) ^ 0x5412
}

func bit(b bool) uint {
	if b {
		return 1
	}
	return 0
}

// marks are the centres of the alignment patterns in each direction.
func marks(version int) []int {
	if version == 1 {
		return nil
	}
	n := version/7 + 2
	step := (version*4 + n*2 + 1) / (n*2 - 2) * 2
	if version == 32 {
		step = 26
	}
	places := make([]int, n)
	places[0] = 6
	for i := n - 1; i > 0; i-- {
		places[i] = 17 + 4*version - 7 - (n-1-i)*step
	}
	return places
}

// fixed reports whether a module is of the code's own, and none of its contents.
func fixed(x, y, size, version int, marks []int) bool {
	if x <= 8 && (y <= 8 || y >= size-8) || x >= size-8 && y <= 8 || x == 6 || y == 6 {
		return true
	}
	if version >= 7 && (x < 6 && y >= size-11 || y < 6 && x >= size-11) {
		return true
	}
	for _, my := range marks {
		for _, mx := range marks {
			corner := mx == 6 && my == 6 || mx == 6 && my == size-7 || mx == size-7 && my == 6
			if !corner && -2 <= x-mx && x-mx <= 2 && -2 <= y-my && y-my <= 2 {
				return true
			}
		}
	}
	return false
}

// masked reports whether a mask turns a module over.
func masked(mask, x, y int) bool {
	switch mask {
	case 0:
		return (x+y)%2 == 0
	case 1:
		return y%2 == 0
	case 2:
		return x%3 == 0
	case 3:
		return (x+y)%3 == 0
	case 4:
		return (x/3+y/2)%2 == 0
	case 5:
		return x*y%2+x*y%3 == 0
	case 6:
		return (x*y%2+x*y%3)%2 == 0
	}
	return ((x+y)%2+x*y%3)%2 == 0
}

// codewords reads the contents: two columns at a time, up and down, from the right.
func (g *grid) codewords(version, mask int) []byte {
	places := marks(version)
	var words []byte
	var word, n uint
	for right := g.size - 1; right > 0; right -= 2 {
		if right == 6 {
			right = 5
		}
		upward := (right+1)&2 == 0
		for i := range g.size {
			y := i
			if upward {
				y = g.size - 1 - i
			}
			for _, x := range []int{right, right - 1} {
				if fixed(x, y, g.size, version, places) {
					continue
				}
				word = word<<1 | bit(g.at(x, y) != masked(mask, x, y))
				if n++; n%8 == 0 {
					words = append(words, byte(word))
				}
			}
		}
	}
	return words
}

// segments reads the data: texts in modes, one after another.
func segments(data []byte, version int) (string, error) {
	r := bitReader{data: data}
	var b strings.Builder
	for r.left() >= 4 {
		switch mode := r.take(4); mode {
		case 0:
			return b.String(), nil
		case 1:
			r.digits(&b, r.take([]int{10, 12, 14}[sizeClass(version)]))
		case 2:
			r.letters(&b, r.take([]int{9, 11, 13}[sizeClass(version)]))
		case 4:
			for range r.take([]int{8, 16, 16}[sizeClass(version)]) {
				b.WriteByte(byte(r.take(8)))
			}
		case 7: // which characters the bytes mean: a token has none but ASCII
			if r.take(8)&0x80 != 0 {
				return "", errGrid
			}
		default:
			return "", errGrid
		}
		if r.over {
			return "", errGrid
		}
	}
	return b.String(), nil
}

func sizeClass(version int) int {
	switch {
	case version < 10:
		return 0
	case version < 27:
		return 1
	}
	return 2
}

// bitReader takes bits off the front.
type bitReader struct {
	data []byte
	at   int
	over bool // more was taken than there was
}

func (r *bitReader) left() int { return 8*len(r.data) - r.at }

func (r *bitReader) take(n int) int {
	if r.over || n > r.left() {
		r.over = true
		return 0
	}
	value := 0
	for range n {
		value = value<<1 | int(r.data[r.at/8]>>(7-r.at%8)&1)
		r.at++
	}
	return value
}

func (r *bitReader) digits(b *strings.Builder, n int) {
	for ; n > 0 && !r.over; n -= 3 {
		width := min(n, 3)
		value := r.take([]int{0, 4, 7, 10}[width])
		for _, unit := range []int{100, 10, 1}[3-width:] {
			b.WriteByte(byte('0' + value/unit%10))
		}
	}
}

func (r *bitReader) letters(b *strings.Builder, n int) {
	const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"
	for ; n > 1 && !r.over; n -= 2 {
		value := r.take(11)
		b.WriteByte(letters[value/45%45])
		b.WriteByte(letters[value%45])
	}
	if n == 1 {
		b.WriteByte(letters[r.take(6)%45])
	}
}
