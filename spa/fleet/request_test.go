package fleet

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"filippo.io/age"

	"sallyport/spa/lab"
)

func TestRequest(t *testing.T) {
	id := lab.Value(age.GenerateHybridIdentity())(t)
	sent := Request{"web7", "[2001:db8::7]:443", []uint16{62201, 443}, id.Recipient()}
	line := sent.String()
	broken := line[:200] + "\n  " + line[200:900] + "\r\n" + line[900:] + "\n"
	for _, text := range []string{line, " " + line + "\n", broken} {
		got, err := ParseRequest(text)
		lab.Must(t, err)
		if got.String() != line || !slices.Equal(got.KnockPorts, sent.KnockPorts) {
			t.Errorf("got %v", got)
		}
	}
	f := strings.Fields(line)
	for name, text := range map[string]string{
		"empty":         "",
		"another form":  strings.Replace(line, "spagw1", "spagw2", 1),
		"no name":       strings.Replace(line, "web7", "Web 7", 1),
		"a bad name":    strings.Replace(line, "web7", "Web7", 1),
		"a bad address": strings.Replace(line, f[2], "a:b:c", 1),
		"no port":       strings.Replace(line, f[3], ",", 1),
		"port 65536":    strings.Replace(line, f[3], "65536", 1),
		"33 ports":      strings.Replace(line, f[3], ports(33), 1),
		"port 0":        strings.Replace(line, f[3], "0", 1),
		"a port twice":  strings.Replace(line, f[3], "1,1", 1),
		"cut off":       line[:len(line)-1],
		"longer":        line + "q",
		"in capitals":   strings.Replace(line, f[4], strings.ToUpper(f[4]), 1),
		"an identity":   strings.Replace(line, f[4], id.String(), 1),
	} {
		if _, err := ParseRequest(text); !errors.Is(err, ErrRequest) || strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// ports returns n ports as a line has them.
func ports(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = strconv.Itoa(1000 + i)
	}
	return strings.Join(list, ",")
}

func FuzzParseRequest(f *testing.F) {
	id := lab.Value(age.GenerateHybridIdentity())(f)
	f.Add(Request{"web7", "192.0.2.7", []uint16{62201}, id.Recipient()}.String())
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRequest(text)
		if err != nil {
			return
		}
		if again, err := ParseRequest(r.String()); err != nil || again.String() != r.String() {
			t.Errorf("%q does not parse again: %v", r, err)
		}
	})
}
