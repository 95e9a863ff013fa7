package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSchedule checks number 3 of section 7.
func TestSchedule(t *testing.T) {
	for _, random := range []float64{0, 0.5, 1} {
		moments := schedule(10*time.Second, func() float64 { return random })
		if moments[0] != 0 || !slices.IsSorted(moments) || len(moments) != maxTries {
			t.Errorf("got %v", moments)
		}
		if second := moments[1]; second < 119*time.Millisecond || second > 181*time.Millisecond {
			t.Errorf("the second packet goes at %v", second)
		}
		if last := moments[maxTries-1]; last > 9500*time.Millisecond {
			t.Errorf("the last packet goes at %v", last)
		}
	}
}

// TestClocks checks the correction of section 9.
func TestClocks(t *testing.T) {
	a := answer{first: time.Unix(1000, 0), arrived: time.Unix(1002, 0)}
	for made, want := range map[int64]int64{1001: 1031, 990: 1030, 1010: 1032} {
		a.receipt.time = made * int64(time.Second)
		if got := a.end(grant{millis: 30000}).Unix(); got != want {
			t.Errorf("made at %d: ends at %d, want %d", made, got, want)
		}
	}
}

// TestSource checks what section 8 lets a client state.
func TestSource(t *testing.T) {
	for _, c := range []struct{ rule, local, want string }{
		{"", "10.0.0.1", "none"},
		{"", "8.8.8.8", "8.8.8.8"},
		{"", "192.0.0.9", "192.0.0.9"},
		{"", "2606:4700::1111", "2606:4700::1111"},
		{"", "2001:db8::1", "none"},
		{"", "fd00::1", "none"},
		{"", "fec0::1", "none"},
		{"", "64:ff9b::808:808", "64:ff9b::808:808"},
		{"observed", "8.8.8.8", "none"},
		{"192.0.2.1", "10.0.0.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "10.0.0.1", "192.0.2.1"},
	} {
		rule, err := parseSource(c.rule)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressText(rule.choose(netip.MustParseAddr(c.local))); got != c.want {
			t.Errorf("%q from %s: got %s, want %s", c.rule, c.local, got, c.want)
		}
	}
	for _, bad := range []string{"0.0.0.0", "::", "::ffff:0.0.0.0", "fe80::1%eth0", "224.0.0.1", "ff02::1", "stun:", "stun:a", "Observed"} {
		if _, err := parseSource(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

// TestAddress checks the forms of the server's address in section 3.
func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"gw.example.net": "gw.example.net 0", "gw.example.net:443": "gw.example.net 443",
		"192.0.2.1": "192.0.2.1 0", "192.0.2.1:443": "192.0.2.1 443",
		"2001:db8::1": "2001:db8::1 0", "[2001:db8::1]": "2001:db8::1 0", "GW_1.example.net.": "GW_1.example.net. 0", "[2001:db8::1]:443": "2001:db8::1 443",
		"": "", ":443": "", "gw:0": "", "gw:": "", "gw:65536": "", "gw:044": "", "a b": "", "2001:db8::1::": "", "1:2:3:4:5:6:7:8:443": "",
	} {
		host, port, err := splitAddress(text)
		if got := fmt.Sprint(host, " ", port); err == nil && got != want || err != nil && want != "" {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

// TestTokenBreaks checks that a changed token is refused.
func TestTokenBreaks(t *testing.T) {
	good := encodeToken(testProfile(t, 62201))
	if _, err := parseToken(good); err != nil {
		t.Fatal(err)
	}
	zero := testProfile(t, 62201)
	zero.clientID = 0
	for _, bad := range []string{
		"", "spa1", good[1:], good + "=", good + "A", good[:40] + "\n" + good[40:], good[:40] + " " + good[40:],
		strings.ToUpper(good), encodeToken(zero), encodeToken(testProfile(t, 0)),
	} {
		if _, err := parseToken(bad); err == nil {
			t.Errorf("took a token of %d characters", len(bad))
		}
	}
}
