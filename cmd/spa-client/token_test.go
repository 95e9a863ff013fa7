package main

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unicode/utf16"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
)

// inUTF16 returns a text as PowerShell on Windows redirects it into a file.
func inUTF16(order binary.AppendByteOrder, text string) []byte {
	var b []byte
	for _, unit := range utf16.Encode([]rune("\ufeff" + text)) {
		b = order.AppendUint16(b, unit)
	}
	return b
}

func TestTokenFromWindows(t *testing.T) {
	p := keys.Profile{Name: "gw", Address: "192.0.2.1", KnockPorts: []uint16{62201},
		ServerID: keys.NewServerID(), Gate: keys.NewGateKey(),
		Client: "alice", ID: keys.NewID(), Key: keys.NewKey(), Receipts: true}
	text := p.Token() + "\r\n"
	for name, data := range map[string][]byte{
		"plain":              []byte(text),
		"UTF-8 with a mark":  []byte("\ufeff" + text),
		"UTF-16":             inUTF16(binary.LittleEndian, text),
		"UTF-16 big-endian":  inUTF16(binary.BigEndian, text),
		"half a unit behind": append(inUTF16(binary.LittleEndian, text), 0),
	} {
		if _, err := keys.ParseToken(decoded(data)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, data := range []string{"", "\xff\xfe", "\xff\xfe\x00", "\xfe\xff"} {
		if got := decoded([]byte(data)); got != "" {
			t.Errorf("%q is %q", data, got)
		}
	}
}

// TestNoToken: the error explains as far as possible why the input is not a token, and never shows it.
func TestNoToken(t *testing.T) {
	for data, want := range map[string]string{
		" \r\n":                "the input is empty",
		"spa1AAAA\r\nAAAA\r\n": "join them",
		"spa1AAAA":             "from spa1 to its end",
	} {
		err := noToken(keys.ErrToken, []byte(data))
		if said := said(err); !strings.Contains(said, want) || strings.Contains(said, "AAAA") || said == "" {
			t.Errorf("of %q it says %q, want %q", data, said, want)
		}
	}
	if said := said(noToken(keys.ErrToken, []byte("spa1AAAA\n"))); strings.Contains(said, "join") {
		t.Errorf("of one line it says %q", said)
	}
}

// said returns everything that the user sees of an error.
func said(err error) string {
	var exit *cli.Exit
	if !errors.As(err, &exit) {
		return ""
	}
	return exit.Error() + "\n" + exit.Hint
}
