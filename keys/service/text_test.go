package service

import (
	"strings"
	"testing"
	"time"
)

func TestValidName(t *testing.T) {
	for _, good := range []string{"a", "0", "alice", "a-b-", strings.Repeat("x", 32)} {
		if err := ValidName(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "A", "a_b", "a.b", "a/b", "..", "ä", "a b", "a\n", strings.Repeat("x", 33)} {
		if ValidName(bad) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

func TestSplitAddress(t *testing.T) {
	for in, want := range map[string]struct {
		host string
		port uint16
	}{
		"gw.example.net":      {"gw.example.net", 0},
		"gw.example.net.":     {"gw.example.net.", 0},
		"gw_1:443":            {"gw_1", 443},
		"192.0.2.1":           {"192.0.2.1", 0},
		"192.0.2.1:62201":     {"192.0.2.1", 62201},
		"2001:db8::1":         {"2001:db8::1", 0},
		"[2001:db8::1]":       {"2001:db8::1", 0},
		"[2001:db8::1]:65535": {"2001:db8::1", 65535},
	} {
		host, port, err := SplitAddress(in)
		if err != nil || host != want.host || port != want.port {
			t.Errorf("%s: got %q, %d, %v, want %v", in, host, port, err, want)
		}
	}
	for _, bad := range []string{
		"", ":443", "gw:", "gw:0", "gw:65536", "gw:+1", "gw:01", "gw:x", "a:b:c", "[192.0.2.1]:1", "[2001:db8::1",
		"[2001:db8::1]x:1",
		"2001:db8::1]:1", "1:2:3:4:5:6:7:8:443", "[gw]:1", "fe80::1%eth0", "[fe80::1%eth0]:1", "::ffff:192.0.2.1", "0.0.0.0",
		"::", "224.0.0.1", "ff02::1",
		"256.1.1.1", "192.0.2", "gw example", "-gw", "gw-", "a..b", ".", "gw/24", "https://gw", "gw\n", "gw\x00", `g"w`,
		strings.Repeat("a", 64), strings.Repeat("a.", 125) + "a",
	} {
		if host, port, err := SplitAddress(bad); err == nil || host != "" || port != 0 {
			t.Errorf("%q: got %q, %d, %v, want an error and nothing else", bad, host, port, err)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"1s": time.Second, "1h30m": 90 * time.Minute,
		"1.5s": 1500 * time.Millisecond, "1000h": MaxDuration} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "30", "1d", "0s", "-1s", "999ms", "1000h1s", "1.0001s", "1s ", "nan"} {
		if got, err := ParseDuration(bad); err == nil || got != 0 {
			t.Errorf("%q: got %v, %v, want an error", bad, got, err)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for want, in := range map[string]time.Duration{
		"1s": time.Second, "30s": 30 * time.Second, "10m": 10 * time.Minute, "1h": time.Hour, "1h30m": 90 * time.Minute,
		"1h0m1s": time.Hour + time.Second, "1m30s": 90 * time.Second, "1.5s": 1500 * time.Millisecond, "10h": 10 * time.Hour,
		"1000h": MaxDuration,
	} {
		if got := FormatDuration(in); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if back, err := ParseDuration(want); err != nil || back != in {
			t.Errorf("%s is read as %v, %v, want %v", want, back, err, in)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"203.0.113.0/24": "203.0.113.0/24", "203.0.113.7": "203.0.113.7/32", "2001:db8::1": "2001:db8::1/128",
		"2001:db8::/32": "2001:db8::/32", "0.0.0.0/0": "0.0.0.0/0",
	} {
		if got, err := ParsePrefix(in); err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v, want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "203.0.113.7/24", "203.0.113.0/33", "2001:db8::1/32", "::ffff:192.0.2.0/120",
		"::ffff:192.0.2.1", "fe80::1%eth0", "fe80::%eth0/10", "gw", "203.0.113.0/024"} {
		if got, err := ParsePrefix(bad); err == nil || got.IsValid() {
			t.Errorf("%q: got %v, %v, want an error", bad, got, err)
		}
	}
}
