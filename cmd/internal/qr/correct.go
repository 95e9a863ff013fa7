package qr

// correct takes the interleaved codewords apart into their blocks, mends each, and returns
// the data.
func correct(words []byte, blocks, checks int) ([]byte, bool) {
	long := len(words) % blocks // so many blocks have a codeword more
	size := len(words)/blocks - checks
	if size <= 0 {
		return nil, false
	}
	field := newField()
	var data []byte
	for b := range blocks {
		block := make([]byte, 0, size+1+checks)
		for i := range size {
			block = append(block, words[i*blocks+b])
		}
		if b >= blocks-long {
			block = append(block, words[size*blocks+b-(blocks-long)])
		}
		n := len(block)
		for i := range checks {
			block = append(block, words[size*blocks+long+i*blocks+b])
		}
		if !field.mend(block, checks) {
			return nil, false
		}
		data = append(data, block[:n]...)
	}
	return data, true
}

// A field is GF(256) with the polynomial of QR codes, x⁸+x⁴+x³+x²+1, by logarithms.
type field struct {
	exp [510]byte
	log [256]int
}

func newField() *field {
	f := new(field)
	x := 1
	for i := range 255 {
		f.exp[i], f.exp[i+255], f.log[x] = byte(x), byte(x), i
		if x <<= 1; x > 255 {
			x ^= 0x11d
		}
	}
	return f
}

func (f *field) mul(a, b byte) byte {
	if a == 0 || b == 0 {
		return 0
	}
	return f.exp[f.log[a]+f.log[b]]
}

func (f *field) inverse(a byte) byte { return f.exp[255-f.log[a]] }

// value is a polynomial, its lowest coefficient first, at x.
func (f *field) value(p []byte, x byte) byte {
	var sum byte
	for i := len(p) - 1; i >= 0; i-- {
		sum = f.mul(sum, x) ^ p[i]
	}
	return sum
}

// mend corrects a Reed-Solomon block in place, if no more than half as many codewords are
// wrong as it has checks: Berlekamp and Massey find where, Forney by how much.
func (f *field) mend(block []byte, checks int) bool {
	syndromes, wrong := f.syndromes(block, checks)
	if !wrong {
		return true
	}
	locator, errors := f.locator(syndromes)
	if errors > checks/2 {
		return false
	}
	evaluator := make([]byte, checks)
	for i := range checks {
		for j := 0; j <= i && j < len(locator); j++ {
			evaluator[i] ^= f.mul(locator[j], syndromes[i-j])
		}
	}
	derivative := make([]byte, len(locator))
	for i := 1; i < len(locator); i += 2 {
		derivative[i-1] = locator[i]
	}
	for i := range block {
		power := len(block) - 1 - i
		x := f.exp[(255-power%255)%255]
		if f.value(locator, x) != 0 {
			continue
		}
		slope := f.value(derivative, x)
		if slope == 0 {
			return false
		}
		// The code's first root is 1, so what Forney's formula has of x is one power of it.
		block[i] ^= f.mul(f.exp[power%255], f.mul(f.value(evaluator, x), f.inverse(slope)))
	}
	_, wrong = f.syndromes(block, checks)
	return !wrong
}

// syndromes are the values of the block at the roots that every good block has.
func (f *field) syndromes(block []byte, checks int) (s []byte, wrong bool) {
	s = make([]byte, checks)
	for i := range checks {
		for _, word := range block {
			s[i] = f.mul(s[i], f.exp[i]) ^ word
		}
		wrong = wrong || s[i] != 0
	}
	return s, wrong
}

// locator is the polynomial whose roots tell where errors are, and how many it takes them for.
func (f *field) locator(s []byte) (locator []byte, errors int) {
	locator = make([]byte, len(s)+1)
	before := make([]byte, len(s)+1)
	locator[0], before[0] = 1, 1
	shift, last := 1, byte(1)
	for n := range s {
		discrepancy := s[n]
		for i := 1; i <= errors; i++ {
			discrepancy ^= f.mul(locator[i], s[n-i])
		}
		if discrepancy == 0 {
			shift++
			continue
		}
		old := append([]byte(nil), locator...)
		factor := f.mul(discrepancy, f.inverse(last))
		for i := 0; i+shift < len(locator); i++ {
			locator[i+shift] ^= f.mul(factor, before[i])
		}
		if 2*errors > n {
			shift++
			continue
		}
		errors, before, last, shift = n+1-errors, old, discrepancy, 1
	}
	return locator, errors
}
