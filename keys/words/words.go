// Package words writes bytes as words that people can print and type, and reads them back.
//
// The words are the 7776 of the EFF's large list for diceware, in its order. A line of eight words holds 12 bytes and a
// checksum. As digits to the base 7776, most significant first, the words are the number
//
//	168 * (the bytes, big-endian) + (SHA-256("sallyport 1 words" || line || the bytes)[:8], big-endian, modulo 168)
//
// where line counts from 0, as 4 bytes, big-endian. A line with a wrong word, or with two that changed places, is
// found, except once in 168 times: so the bytes as a whole must have a checksum of their own.
package words

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/sethvargo/go-diceware/diceware"
)

const (
	// PerLine is the number of words in a line.
	PerLine = 8
	// Size is the number of bytes in a line.
	Size = 12

	count  = 7776 // of the list
	checks = 168  // count to the power of PerLine is a little more than 168 * 2^(8*Size)
	label  = "sallyport 1 words"

	maxText = 1 << 16 // of what is typed
)

// list returns the words in their order, and the place of each.
func list() ([]string, map[string]int) {
	from := diceware.WordListEffLarge()
	all, places := make([]string, count), make(map[string]int, count)
	for i := range all {
		dice, n := 0, i // five throws, written as the digits 1 to 6
		for place := 1; place <= 10000; place *= 10 {
			dice += place * (n%6 + 1)
			n /= 6
		}
		all[i] = from.WordAt(dice)
		places[all[i]] = i
	}
	return all, places
}

// check returns the checksum of a line, which counts from 0.
func check(line int, part []byte) int64 {
	h := sha256.New()
	h.Write([]byte(label))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(line)))
	h.Write(part)
	return int64(binary.BigEndian.Uint64(h.Sum(nil)) % checks)
}

// Encode returns the lines for some bytes, to which it adds zeros up to a whole line.
func Encode(b []byte) []string {
	all, _ := list()
	b = append([]byte{}, b...)
	for len(b)%Size != 0 {
		b = append(b, 0)
	}
	lines := make([]string, len(b)/Size)
	for i := range lines {
		part := b[i*Size:][:Size]
		n := new(big.Int).SetBytes(part)
		n.Mul(n, big.NewInt(checks)).Add(n, big.NewInt(check(i, part)))
		lines[i] = strings.Join(digits(n, all), " ")
	}
	return lines
}

func digits(n *big.Int, all []string) []string {
	found := make([]string, PerLine)
	digit := new(big.Int)
	for i := PerLine - 1; i >= 0; i-- {
		n.DivMod(n, big.NewInt(count), digit)
		found[i] = all[digit.Int64()]
	}
	return found
}

// Decode returns the bytes that Encode was given, with the zeros that it added. Case, line breaks and the numbers of
// lines do not matter. Its error names the line and the word of each mistake, both counted from 1, and quotes no word.
func Decode(text string) ([]byte, error) {
	if len(text) > maxText {
		return nil, errors.New("more than anyone types")
	}
	var typed [][]string
	var all []string
	for line := range strings.Lines(text) {
		if in := fields(line); len(in) > 0 {
			typed = append(typed, in)
			all = append(all, in...)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("there are no words")
	}
	b, err := decode(inLines(all))
	if err != nil && len(typed[0]) == PerLine { // its lines are those of the page, so a missing word is in one of them
		return decode(typed)
	}
	return b, err
}

// Check returns the error of Decode for a single line, which is counted from 0.
func Check(line int, text string) error {
	_, places := list()
	if _, err := decodeLine(line, fields(text), places); err != nil {
		return fmt.Errorf("line %d%w", line+1, err)
	}
	return nil
}

// fields returns the words of a line, without its number.
func fields(line string) []string {
	in := strings.Fields(strings.ToLower(line))
	if len(in) > 0 {
		if _, err := strconv.Atoi(strings.TrimRight(in[0], ".:)")); err == nil {
			return in[1:]
		}
	}
	return in
}

func inLines(all []string) [][]string {
	lines := [][]string{}
	for len(all) > PerLine {
		lines, all = append(lines, all[:PerLine]), all[PerLine:]
	}
	return append(lines, all)
}

func decode(lines [][]string) ([]byte, error) {
	_, places := list()
	var b []byte
	var mistakes []error
	for i, in := range lines {
		part, err := decodeLine(i, in, places)
		if err != nil {
			mistakes = append(mistakes, fmt.Errorf("line %d%w", i+1, err))
		}
		b = append(b, part...)
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	return b, nil
}

// decodeLine returns the bytes of a line. Its error goes on after the number of the line.
func decodeLine(i int, in []string, places map[string]int) ([]byte, error) {
	n := new(big.Int)
	var unknown []string
	for at, word := range in {
		place, ok := places[word]
		if !ok {
			unknown = append(unknown, strconv.Itoa(at+1))
		}
		n.Mul(n, big.NewInt(count)).Add(n, big.NewInt(int64(place)))
	}
	switch {
	case len(unknown) == 1:
		return nil, fmt.Errorf(": word %s is not in the list", unknown[0])
	case len(unknown) > 1:
		return nil, fmt.Errorf(": words %s are not in the list", strings.Join(unknown, ", "))
	case len(in) != PerLine:
		return nil, fmt.Errorf(" has %d words in place of %d", len(in), PerLine)
	}
	sum := new(big.Int)
	n.DivMod(n, big.NewInt(checks), sum)
	if n.BitLen() <= 8*Size {
		if part := n.FillBytes(make([]byte, Size)); check(i, part) == sum.Int64() {
			return part, nil
		}
	}
	return nil, errors.New(": a word is wrong, or the words or lines are not in their order")
}
