package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/lab"
)

// wallClock sets the machine's time zone so that its clocks show a time of day now (RFC 8536 for the file): hours end
// within a second that the test chooses, on the real clock. It returns when they show it.
func wallClock(t *testing.T, shows time.Duration) time.Time {
	t.Helper()
	now := time.Now().UTC()
	midnight := now.Truncate(24 * time.Hour)
	offset := (shows - now.Sub(midnight)).Truncate(time.Second)
	zone := append([]byte("TZif"), make([]byte, 16)...)
	for _, count := range []uint32{0, 0, 0, 0, 1, 4} {
		zone = binary.BigEndian.AppendUint32(zone, count)
	}
	zone = binary.BigEndian.AppendUint32(zone, uint32(int32(offset/time.Second)))
	zone = append(zone, 0, 0, 'L', 'A', 'B', 0)
	path := filepath.Join(t.TempDir(), "zone")
	lab.Must(t, os.WriteFile(path, zone, 0o644))
	t.Setenv("TZ", path)
	return midnight.Add(shows - offset)
}

const six = 18 * time.Hour

// set sets a key in a table of server.toml, in place of its value there: g.set("firewall", "closed", `"reject"`).
func (g *gateway) set(table, key, value string) {
	g.t.Helper()
	header := regexp.QuoteMeta("[" + table + "]")
	if table == "" {
		header = "version = 1"
	}
	path := filepath.Join(g.dir, "server.toml")
	data := lab.Value(os.ReadFile(path))(g.t)
	head, rest, ok := cutAfter(string(data), `(?m)^`+header+`.*\n`)
	if !ok {
		g.t.Fatalf("server.toml has no [%s]:\n%s", table, data)
	}
	end := len(rest)
	if next := strings.Index(rest, "\n["); next >= 0 {
		end = next + 1
	}
	section := regexp.MustCompile(`(?m)^`+key+` = .*\n`).ReplaceAllString(rest[:end], "")
	text := head + key + " = " + value + "\n" + section + rest[end:]
	lab.Must(g.t, os.WriteFile(path, []byte(text), 0o600))
}

// cutAfter cuts a text after the first match.
func cutAfter(text, pattern string) (before, after string, ok bool) {
	at := regexp.MustCompile(pattern).FindStringIndex(text)
	if at == nil {
		return text, "", false
	}
	return text[:at[1]], text[at[1]:], true
}

// TestHours: a service, and a client, is let in only in its hours, by the machine's clock; a grant ends with them, the
// receipt says so, and no client gets in until they begin again.
func TestHours(t *testing.T) {
	g := newGateway(t)
	g.set("service.ssh", "when", `["mon-sun 08:00-18:00"]`)
	bob := sender(g.enrol("bob", "web"))
	g.edit("bob", "when = [\"mon-sun 08:00-18:00\"]\n")
	g.serve(":22")
	g.serve(":80")
	web := func(kind spa.Type) spa.Request {
		r := request()
		r.Type, r.Services = kind, []service.Service{{Name: "web"}}
		if kind == spa.TypeOpen {
			r.For = 10 * time.Minute
		}
		return r
	}
	end := wallClock(t, six-5*time.Minute).Add(5 * time.Minute)
	g.start()
	for range 2 { // a refresh is clipped too
		out := g.mustOpen("--for", "10m", "--source", "192.0.2.2")
		if !regexp.MustCompile(` until (17:59:59|18:00:00) \(\w+\)\n`).MatchString(out) {
			t.Errorf("got %q, want it to be open until 18:00:00, of which the receipt tells whole milliseconds", out)
		}
		receipt := g.wantReceipt("192.0.2.9", g.seal(web(spa.TypeOpen), bob), bob, spa.Granted)
		if until := receipt.Time.Add(receipt.Services[0].For); until.Sub(end).Abs() > time.Second {
			t.Errorf("bob's grant ends at %v, want %v", until, end)
		}
	}
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "in the service's hours")
	g.wantOpen("192.0.2.9", "192.0.2.1:80", "in the client's hours")
	closing := request()
	closing.Type = spa.TypeClose
	alice := sender(g.profile())
	g.wantReceipt("192.0.2.2", g.seal(closing, alice), alice, spa.Closed)
	g.wantReceipt("192.0.2.9", g.seal(web(spa.TypeClose), bob), bob, spa.Closed)

	for left := 3 * time.Second; ; left *= 4 { // if it is over before both have asked, start again earlier
		g.server.stop(syscall.SIGTERM)
		end := wallClock(t, six-left).Add(left)
		g.start()
		out, code := g.open("--for", "10m", "--source", "192.0.2.2")
		receipt := g.exchange("192.0.2.9", g.seal(web(spa.TypeOpen), bob), bob, lab.Patience)
		if code == 0 && receipt != nil && receipt.Status == spa.Granted {
			break
		}
		if left > lab.Patience || time.Now().Before(end) {
			t.Fatalf("%v before the end of the hours: exit %d and %+v\n%s", left, code, receipt, out)
		}
	}
	lab.Eventually(t, "the grants to end with the hours", func() bool {
		return !g.reaches("192.0.2.2", "192.0.2.1:22") && !g.reaches("192.0.2.9", "192.0.2.1:80")
	})
	lab.Eventually(t, "the hours to be over for who asks", func() bool {
		out, code := g.open("--source", "192.0.2.2")
		return code == 3 && strings.Contains(out, "outside the hours that the gateway's administrator set")
	})
	g.wantReceipt("192.0.2.9", g.seal(web(spa.TypeOpen), bob), bob, spa.ReasonNotNow)
	g.wantDark("192.0.2.2", "192.0.2.1:22", "after hours")
	g.wantDark("192.0.2.9", "192.0.2.1:80", "after hours")
	g.wantReceipt("192.0.2.9", g.seal(web(spa.TypeClose), bob), bob, spa.Closed)
}

// TestZone: hours are in the zone that the file names, whatever the machine's zone is.
func TestZone(t *testing.T) {
	far := time.FixedZone("", -11*60*60)
	now := time.Now().In(far)
	until := now.Add(time.Hour).Format("15:04")
	if until == "00:00" {
		until = "24:00"
	}
	around := fmt.Sprintf(`["mon-sun %s-%s"]`, now.Add(-time.Hour).Format("15:04"), until)
	for zone, want := range map[string]int{"Etc/GMT+11": 0, "UTC": 3} {
		g := newGateway(t)
		g.set("", "zone", `"`+zone+`"`)
		g.set("service.ssh", "when", around)
		g.start()
		if out, code := g.open(); code != want {
			t.Errorf("in %s: exit %d, want %d\n%s", zone, code, want, out)
		}
	}
}

// TestZoneByReload: a server that can no longer open the zone database still learns of another zone.
func TestZoneByReload(t *testing.T) {
	g := newGateway(t)
	wallClock(t, 12*time.Hour)
	g.start()
	g.set("service.ssh", "when", `["mon-sun 11:00-13:00"]`)
	g.fails(0, "reload", "--config", g.dir)
	g.mustOpen()
	zone := "Asia/Tokyo" // where it is not noon now, as it is not in Honolulu while it is there
	if hour := time.Now().UTC().Hour(); 1 <= hour && hour <= 4 {
		zone = "Pacific/Honolulu"
	}
	g.set("", "zone", `"`+zone+`"`)
	g.fails(0, "reload", "--config", g.dir)
	if out, code := g.open(); code != 3 || !strings.Contains(out, "outside the hours") {
		t.Errorf("in %s: exit %d\n%s", zone, code, out)
	}
}

// TestHoursNarrowed: a grant that lasts past the file's new hours ends: while the server runs, and when it comes back.
func TestHoursNarrowed(t *testing.T) {
	g := newGateway(t)
	g.serve(":22")
	wallClock(t, 12*time.Hour)
	g.start()
	alice := sender(g.profile())
	open := func() {
		t.Helper()
		r := request()
		r.For = 10 * time.Minute
		g.wantReceipt("192.0.2.2", g.seal(r, alice), alice, spa.Granted)
		g.wantOpen("192.0.2.2", "192.0.2.1:22", "opened")
	}
	within := func() { // still noon
		g.rewrite("clients/alice.toml", `(?m)^when = .*\n`, "")
		g.edit("alice", "when = [\"mon-sun 08:00-18:00\"]\n")
	}
	g.edit("alice", "when = [\"mon-sun 08:00-18:00\"]\n")
	g.awaitLog("client changed")
	open()
	g.rewrite("clients/alice.toml", `when = .*`, `when = ["mon-sun 08:00-12:05"]`)
	lab.Eventually(t, "a grant past the narrowed hours to be ended",
		func() bool { return !g.reaches("192.0.2.2", "192.0.2.1:22") })

	known := g.said("client changed")
	within()
	lab.Eventually(t, "the server to read the file again", func() bool { return g.said("client changed") > known })
	lab.Eventually(t, "the hours to be wide again", func() bool {
		r := request()
		r.For = 10 * time.Minute
		receipt := g.exchange("192.0.2.2", g.seal(r, alice), alice, lab.Patience)
		return receipt != nil && receipt.Status == spa.Granted && receipt.Services[0].For == 10*time.Minute
	})
	g.server.stop(syscall.SIGKILL)
	g.start()
	g.wantOpen("192.0.2.2", "192.0.2.1:22", "after kill -9, with the hours as they were")
	g.server.stop(syscall.SIGKILL)
	g.set("service.ssh", "when", `["mon-sun 08:00-12:05"]`)
	g.start()
	g.wantDark("192.0.2.2", "192.0.2.1:22", "the service's hours were narrowed while the server was down")
}

// awaitLog returns when the server has logged something.
func (g *gateway) awaitLog(words string) {
	g.t.Helper()
	lab.Eventually(g.t, "the server to say "+words, func() bool { return g.said(words) > 0 })
}

// said returns how often the server has logged something.
func (g *gateway) said(words string) int { return strings.Count(g.server.log(), words) }
