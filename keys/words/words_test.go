package words

import (
	"bytes"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestWordsComeBack: what is encoded is decoded, however it is broken into lines, numbered and capitalised.
func TestWordsComeBack(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := 1; n < 200; n += 1 + n/20 {
		b := random(r, n)
		if n%7 == 0 {
			clear(b[n/2:])
		}
		if n%11 == 0 {
			b = bytes.Repeat([]byte{0xff}, n)
		}
		lines := Encode(b)
		want := append(b, make([]byte, len(lines)*Size-n)...)
		numbered := ""
		for i, line := range lines {
			numbered += strings.Repeat(" ", i%3) + string(rune('1'+i%9)) + ". " + line + "\r\n"
		}
		all := strings.Fields(strings.Join(lines, " "))
		for _, text := range []string{
			strings.Join(lines, "\n"), strings.Join(lines, " "), numbered, strings.ToUpper(numbered),
			strings.Join(all, "\n"), strings.Join(all, "\t\n\n "),
		} {
			if got := lab.Value(Decode(text))(t); !bytes.Equal(got, want) {
				t.Fatalf("%x came back as %x", want, got)
			}
		}
	}
}

var numbers = regexp.MustCompile(`[0-9]+`)

// TestMistakesAreNamed: each mistake is named by its line and word, and no message has a word of the list in it.
func TestMistakesAreNamed(t *testing.T) {
	lines := Encode(random(rand.New(rand.NewPCG(3, 4)), 60))
	change := func(line int, how func(in []string) []string) string {
		next := append([]string{}, lines...)
		next[line-1] = strings.Join(how(strings.Fields(next[line-1])), " ")
		return strings.Join(next, "\n")
	}
	for text, want := range map[string]string{
		change(2, func(in []string) []string { in[4] = "sallyport"; return in }): "line 2: word 5 is not in the list",
		change(5, func(in []string) []string { in[0], in[7] = "qx", "qy"; return in }): "line 5: words 1, 8 are not " +
			"in the list",
		change(3, func(in []string) []string { return in[1:] }):               "line 3 has 7 words in place of 8",
		change(4, func(in []string) []string { return append(in, "abacus") }): "line 4 has 9 words in place of 8",
		change(1, func(in []string) []string { in[2], in[3] = in[3], in[2]; return in }): "line 1: a word is wrong, or " +
			"the words or lines are not in their order",
		lines[0] + "\n" + lines[2] + "\n" + lines[1]: "line 2: a word is wrong, or the words or lines " +
			"are not in their order\n" +
			"line 3: a word is wrong, or the words or lines are not in their order",
		strings.ReplaceAll(lines[0], " ", "\n") + "\nabacus": "line 2 has 1 words in place of 8",
	} {
		_, err := Decode(text)
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		for _, word := range strings.Fields(text) {
			if err != nil && strings.Contains(numbers.ReplaceAllString(err.Error(), ""), " "+word+" ") {
				t.Errorf("%v has the word %q in it", err, word)
			}
		}
	}
	for _, text := range []string{"", "\n\n", "1.", strings.Repeat("abacus ", maxText)} {
		if _, err := Decode(text); err == nil {
			t.Errorf("%.20q was taken", text)
		}
	}
}

// TestOneWrongWordIsFound: most wrong words are found, wherever they are.
func TestOneWrongWordIsFound(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	all, _ := list()
	missed := 0
	const tries = 500
	for range tries {
		in := strings.Fields(Encode(random(r, Size))[0])
		at := r.IntN(PerLine)
		if next := all[r.IntN(count)]; next != in[at] {
			in[at] = next
			if _, err := Decode(strings.Join(in, " ")); err == nil {
				missed++
			}
		}
	}
	if missed > tries/50 {
		t.Errorf("%d of %d wrong words were taken", missed, tries)
	}
}

// TestListIsWhole: the list has 7776 words, all different, in lower case and without spaces.
func TestListIsWhole(t *testing.T) {
	all, places := list()
	if len(places) != count || all[0] != "abacus" || all[count-1] != "zoom" {
		t.Errorf("%d words from %s to %s", len(places), all[0], all[count-1])
	}
	for _, word := range all {
		if word != strings.ToLower(word) || len(strings.Fields(word)) != 1 || len(fields(word)) != 1 {
			t.Errorf("%q", word)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(strings.Join(Encode([]byte("a seed of the fuzzer")), "\n"))
	f.Fuzz(func(t *testing.T, text string) {
		if b, err := Decode(text); err == nil && !bytes.Equal(lab.Value(Decode(strings.Join(Encode(b), "\n")))(t), b) {
			t.Errorf("%q and its words differ", text)
		}
	})
}
