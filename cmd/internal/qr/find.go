package qr

import (
	"math"
	"slices"
)

// A picture is dark and light points.
type picture struct {
	w, h int
	dark []bool
}

// at is false outside.
func (p *picture) at(x, y int) bool {
	return x >= 0 && y >= 0 && x < p.w && y < p.h && p.dark[y*p.w+x]
}

// A corner is the centre of one of the three squares of a code, and how large a module is there.
type corner struct {
	x, y, module float64
	seen         int
}

func (c corner) to(o corner) float64 { return math.Hypot(o.x-c.x, o.y-c.y) }

// read looks for a code in the picture and returns what it says.
func (p *picture) read() (string, bool) {
	corners := p.corners()
	slices.SortFunc(corners, func(a, b corner) int { return b.seen - a.seen })
	corners = corners[:min(len(corners), 6)]
	for i := range corners {
		for j := range i {
			for k := range j {
				if text, ok := p.readAt(corners[i], corners[j], corners[k]); ok {
					return text, true
				}
			}
		}
	}
	return "", false
}

// maxCorners bounds what a picture full of stripes costs.
const maxCorners = 300

// corners finds what has dark, light, dark, light and dark in the proportions 1:1:3:1:1,
// across and down.
func (p *picture) corners() []corner {
	var found []corner
	for y := range p.h {
		var runs [5]int
		for x := 0; x <= p.w; x++ {
			if x > 0 && x < p.w && p.at(x, y) == p.at(x-1, y) {
				runs[4]++
				continue
			}
			// A run has ended; the five before this point are a corner's only if the last is dark.
			if x > 0 && p.at(x-1, y) && proportioned(runs) {
				found = p.confirm(found, float64(x)-float64(runs[4]+runs[3])-float64(runs[2])/2, y, runs)
			}
			copy(runs[:], runs[1:])
			runs[4] = 1
		}
	}
	return found
}

// proportioned reports whether five runs are as those of a corner, give or take half a module.
func proportioned(runs [5]int) bool {
	total := 0
	for _, n := range runs {
		if n == 0 {
			return false
		}
		total += n
	}
	module := float64(total) / 7
	for i, n := range runs {
		want := []float64{1, 1, 3, 1, 1}[i] * module
		if math.Abs(float64(n)-want) > max(1, want*0.6) {
			return false
		}
	}
	return total >= 7
}

// confirm adds a corner that is one downwards too, to the one that it is the same as.
func (p *picture) confirm(found []corner, x float64, y int, across [5]int) []corner {
	down, middle, ok := p.downwards(int(x), y)
	if !ok || !proportioned(down) {
		return found
	}
	c := corner{x: x, y: middle, module: float64(sum(across)+sum(down)) / 14, seen: 1}
	for i, o := range found {
		if c.to(o) < 3*o.module {
			n := float64(o.seen)
			found[i] = corner{(o.x*n + c.x) / (n + 1), (o.y*n + c.y) / (n + 1), (o.module*n + c.module) / (n + 1), o.seen + 1}
			return found
		}
	}
	if len(found) == maxCorners {
		return found
	}
	return append(found, c)
}

func sum(runs [5]int) int { return runs[0] + runs[1] + runs[2] + runs[3] + runs[4] }

// downwards measures the five runs of a column around a dark point, and the middle of the third.
func (p *picture) downwards(x, y int) (runs [5]int, middle float64, ok bool) {
	if !p.at(x, y) {
		return runs, 0, false
	}
	up, down := y, y+1
	for i := 2; i >= 0; i-- {
		for up >= 0 && p.at(x, up) == (i%2 == 0) {
			runs[i]++
			up--
		}
		if i == 2 {
			middle = float64(up + 1)
		}
	}
	for i := 2; i < 5; i++ {
		for down < p.h && p.at(x, down) == (i%2 == 0) {
			runs[i]++
			down++
		}
		if i == 2 {
			middle = (middle + float64(down)) / 2
		}
	}
	return runs, middle, true
}

// readAt reads the code that has these corners, if there is one. Its size is guessed, and
// those near the guess are tried too: in a code seen from the side it is off.
func (p *picture) readAt(a, b, c corner) (string, bool) {
	if most := max(a.module, b.module, c.module); most > 2.5*min(a.module, b.module, c.module) {
		return "", false
	}
	// The corner opposite to the longest side is the upper left one.
	left, right, low := a, b, c
	switch ab, bc, ca := a.to(b), b.to(c), c.to(a); {
	case ab >= bc && ab >= ca:
		left, right, low = c, a, b
	case ca >= ab && ca >= bc:
		left, right, low = b, c, a
	}
	if (right.x-left.x)*(low.y-left.y) < (right.y-left.y)*(low.x-left.x) {
		right, low = low, right
	}
	across, down := left.to(right), left.to(low)
	if across > 2*down || down > 2*across {
		return "", false
	}
	module := (left.module + right.module + low.module) / 3
	guess := int(math.Round(((across+down)/2/module - 10) / 4))
	for off := range 7 {
		for _, version := range []int{guess + off, guess - off} {
			if version < 1 || version > 40 || off == 0 && version != guess {
				continue
			}
			if text, ok := p.readSize(left, right, low, version); ok {
				return text, true
			}
		}
	}
	return "", false
}

// readSize reads a code of a version. Where its fourth corner is, is searched around where it
// would be in a code seen from straight ahead: by its alignment pattern and the lines of dark
// and light modules between the corners, which every code has.
func (p *picture) readSize(left, right, low corner, version int) (string, bool) {
	size := 17 + 4*version
	mark := float64(size) - 6.5
	if version == 1 {
		mark = float64(size) - 3.5
	}
	between := float64(size - 7)
	part := (mark - 3.5) / between
	u := [2]float64{(right.x - left.x) / between, (right.y - left.y) / between} // a module to the right
	v := [2]float64{(low.x - left.x) / between, (low.y - left.y) / between}     // and down
	x := left.x + part*(right.x-left.x+low.x-left.x)
	y := left.y + part*(right.y-left.y+low.y-left.y)

	type attempt struct {
		lens  lens
		score int
	}
	var attempts []attempt
	const reach, step = 24, 0.4 // in modules: about ten in each direction
	for i := -reach; i <= reach; i++ {
		for j := -reach; j <= reach; j++ {
			s, t := float64(i)*step, float64(j)*step
			l, ok := newLens([4][2]float64{{3.5, 3.5}, {float64(size) - 3.5, 3.5}, {mark, mark}, {3.5, float64(size) - 3.5}},
				[4][2]float64{{left.x, left.y}, {right.x, right.y}, {x + s*u[0] + t*v[0], y + s*u[1] + t*v[1]}, {low.x, low.y}})
			if ok && (version == 1 || p.marked(l, mark) >= 22) {
				attempts = append(attempts, attempt{l, p.timed(l, size)})
			}
		}
	}
	slices.SortStableFunc(attempts, func(a, b attempt) int { return b.score - a.score })
	lines := 2 * (size - 16)
	for _, a := range attempts[:min(len(attempts), 12)] {
		if a.score < lines*3/4 {
			break
		}
		if text, err := p.sample(a.lens, size).text(); err == nil {
			return text, true
		}
	}
	return "", false
}

// marked counts how many of the 25 modules of an alignment pattern are right.
func (p *picture) marked(l lens, centre float64) int {
	right := 0
	for dy := -2; dy <= 2; dy++ {
		for dx := -2; dx <= 2; dx++ {
			ring := max(dx, -dx, dy, -dy)
			if p.seen(l, centre+float64(dx), centre+float64(dy)) == (ring != 1) {
				right++
			}
		}
	}
	return right
}

// timed counts how many modules of the two lines between the corners are right.
func (p *picture) timed(l lens, size int) int {
	right := 0
	for i := 8; i < size-8; i++ {
		for _, at := range [][2]float64{{float64(i) + 0.5, 6.5}, {6.5, float64(i) + 0.5}} {
			if p.seen(l, at[0], at[1]) == (i%2 == 0) {
				right++
			}
		}
	}
	return right
}

func (p *picture) seen(l lens, x, y float64) bool {
	px, py := l.at(x, y)
	return p.at(int(px), int(py))
}

// sample looks at the middle of each module.
func (p *picture) sample(l lens, size int) *grid {
	g := &grid{size: size, dark: make([]bool, 0, size*size)}
	for y := range size {
		for x := range size {
			g.dark = append(g.dark, p.seen(l, float64(x)+0.5, float64(y)+0.5))
		}
	}
	return g
}

// A lens is the projection by which a code's modules are seen in a picture.
type lens [8]float64

// newLens is the projection that takes four points to four others.
func newLens(from, to [4][2]float64) (lens, bool) {
	var m [8][9]float64
	for i := range 4 {
		x, y, u, v := from[i][0], from[i][1], to[i][0], to[i][1]
		m[2*i] = [9]float64{x, y, 1, 0, 0, 0, -x * u, -y * u, u}
		m[2*i+1] = [9]float64{0, 0, 0, x, y, 1, -x * v, -y * v, v}
	}
	for c := range 8 { // Gauss and Jordan
		pivot := c
		for r := c + 1; r < 8; r++ {
			if math.Abs(m[r][c]) > math.Abs(m[pivot][c]) {
				pivot = r
			}
		}
		if math.Abs(m[pivot][c]) < 1e-9 {
			return lens{}, false
		}
		m[c], m[pivot] = m[pivot], m[c]
		for r := range 8 {
			if r == c {
				continue
			}
			factor := m[r][c] / m[c][c]
			for k := c; k < 9; k++ {
				m[r][k] -= factor * m[c][k]
			}
		}
	}
	var l lens
	for i := range 8 {
		l[i] = m[i][8] / m[i][i]
	}
	return l, true
}

// at is where a point of the code is seen.
func (l *lens) at(x, y float64) (float64, float64) {
	z := l[6]*x + l[7]*y + 1
	return (l[0]*x + l[1]*y + l[2]) / z, (l[3]*x + l[4]*y + l[5]) / z
}
