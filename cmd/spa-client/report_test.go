package main

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // not every machine has it

	"github.com/spf13/cobra"

	"sallyport/cmd/internal/cli"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/client"
	"sallyport/spa/client/doctor"
	"sallyport/spa/lab"
)

// answered returns a command whose answers are given.
func answered() (*knock, *cobra.Command, *bytes.Buffer) {
	k := &knock{app: &app{}, plan: &client.Plan{
		Profile: &keys.Profile{Name: "gw", Receipts: true, Services: map[string][]string{"ssh": {"tcp/22"}}},
		Command: client.Command{Type: spa.TypeOpen, Services: []service.Service{{Name: "ssh"}}},
	}}
	var stderr bytes.Buffer
	cmd := &cobra.Command{Use: "spa-client"}
	cmd.SetErr(&stderr)
	return k, cmd, &stderr
}

// answerFrom returns an answer of a gateway at this address.
func answerFrom(gateway string, v client.Verdict, s spa.Status) client.Answer {
	a := client.Answer{Verdict: v, Gateway: netip.MustParseAddr(gateway), Receipt: &spa.Receipt{Status: s}}
	if v == client.Silent {
		a.Receipt, a.Err = nil, client.ErrNoAnswer
	}
	return a
}

// today returns a time of today.
func today(hour, minute int) time.Time {
	year, month, day := time.Now().Date()
	return time.Date(year, month, day, hour, minute, 0, 0, time.Local)
}

func TestConclude(t *testing.T) {
	const v4, v6, refused = "192.0.2.1", "2001:db8::1", "gw refused ssh: not allowed for this client"
	open4, open6 := answerFrom(v4, client.Opened, spa.Granted), answerFrom(v6, client.Opened, spa.Granted)
	no4, no6 := answerFrom(v4, client.Refused, spa.ReasonNotAllowed), answerFrom(v6, client.Refused, spa.ReasonNotAllowed)
	other6 := answerFrom(v6, client.Refused, spa.ReasonSourceRequired)
	none4, none6 := answerFrom(v4, client.Silent, 0), answerFrom(v6, client.Silent, 0)
	broken4 := none4
	over4, early4 := answerFrom(v4, client.Over, spa.Granted), answerFrom(v4, client.Refused, spa.ReasonTooEarly)
	over4.Receipt.Services, over4.Receipt.Time = []spa.Granting{{}}, today(14, 3)
	early4.Receipt.Again = time.Now().Add(23500 * time.Millisecond)
	broken4.Err = errors.New("network is down")
	for name, c := range map[string]struct {
		answers  []client.Answer
		code     int
		err      string
		warnings []string
	}{
		"both": {[]client.Answer{open4, open6}, cli.Done, "", nil},
		"one granted, one silent": {[]client.Answer{open4, none6}, cli.Done, "",
			[]string{"no answer from gw (2001:db8::1)"}},
		"one refused, one granted": {[]client.Answer{no4, open6}, cli.Done, "", []string{"gw refused ssh: not allowed"}},
		"one silent, one refused": {[]client.Answer{none4, no6}, cli.Refused, refused,
			[]string{"no answer from gw (192.0.2.1)"}},
		"both refused alike":      {[]client.Answer{no4, no6}, cli.Refused, refused, nil},
		"both refused, not alike": {[]client.Answer{no4, other6}, cli.Refused, refused, []string{"state its own address"}},
		"both silent": {[]client.Answer{none4, none6}, cli.NoAnswer, "no answer from gw (192.0.2.1)",
			[]string{"2001:db8::1"}},
		"nothing could be sent": {[]client.Answer{broken4}, cli.Failed, "knocking on gw: network is down", nil},
		"unsent, and refused":   {[]client.Answer{broken4, no6}, cli.Refused, refused, []string{"network is down"}},
		"granted, and over": {[]client.Answer{over4}, cli.Failed, "ssh is no longer open on gw: the grant of ssh " +
			"ended at 14:03:00", nil},
		"over, and one granted": {[]client.Answer{over4, open6}, cli.Done, "", []string{"no longer"}},
		"too early": {[]client.Answer{early4}, cli.Refused,
			"gw has just started and accepts no knocks for another 24s", nil},
		"sent without a receipt": {[]client.Answer{answerFrom(v4, client.Sent, spa.Granted)}, cli.Done, "", nil},
		"a close of one that is not": {[]client.Answer{answerFrom(v4, client.Closed, spa.Closed), none6}, cli.Done, "",
			[]string{"2001:db8::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			k, cmd, stderr := answered()
			err := k.conclude(cmd, c.answers)
			var exit *cli.Exit
			code, text := cli.Done, ""
			if errors.As(err, &exit) {
				code, text = exit.Code, exit.Error()
			}
			if code != c.code || text != c.err {
				t.Errorf("got %d, %q; want %d, %q", code, text, c.code, c.err)
			}
			if lines := strings.Count(stderr.String(), "warning:"); lines != len(c.warnings) {
				t.Errorf("got %q, want %d warnings", stderr, len(c.warnings))
			}
			for _, w := range c.warnings {
				if !strings.Contains(stderr.String(), w) {
					t.Errorf("got %q, want it to say %q", stderr, w)
				}
			}
		})
	}
}

// TestUnprepared: if NAT64 makes a stated source useless, the hint says what to change in the command.
func TestUnprepared(t *testing.T) {
	wrong := &client.CommandError{Err: &client.NAT64Error{Gateway: netip.MustParseAddr("64:ff9b::1"),
		Stated: netip.MustParseAddr("2a00::4")}}
	var exit *cli.Exit
	if err := unprepared(wrong); !errors.As(err, &exit) || exit.Code != cli.Misused || !strings.Contains(exit.Hint,
		"--source observed") || !strings.Contains(exit.Error(), "64:ff9b::1") {
		t.Errorf("got %v", exit)
	}
}

// TestHints: every refusal and silence has a hint.
func TestHints(t *testing.T) {
	k, _, _ := answered()
	seen := map[string]bool{}
	for status := spa.ReasonExpired; !strings.HasPrefix(status.String(), "status "); status++ {
		exit := k.failure(answerFrom("192.0.2.1", client.Refused, status))
		if exit.Code != cli.Refused || exit.Hint == "" {
			t.Errorf("%v: got %+v, want a hint", status, exit)
		}
		seen[exit.Hint] = true
	}
	if len(seen) < 7 {
		t.Errorf("got %d different hints", len(seen))
	}
}

func TestOpenLine(t *testing.T) {
	k, _, _ := answered()
	now := time.Date(2026, 11, 21, 14, 3, 0, 900e6, time.Local)
	a := answerFrom("192.0.2.1", client.Opened, spa.Granted)
	a.Receipt.Time, a.Receipt.Source = now, netip.MustParseAddr("203.0.113.7")
	for name, c := range map[string]struct {
		granted spa.Granting
		want    string
	}{
		"the line of the manual": {spa.Granting{For: 30*time.Second - 2*time.Millisecond,
			Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}},
			"ssh (tcp/22) is open on gw for 203.0.113.7 until 14:03:30 (30s)"},
		"several ranges": {spa.Granting{For: 10 * time.Minute,
			Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}, {Proto: service.UDP, Low: 60000, High: 60010}}},
			"ssh (tcp/22, udp/60000-60010) is open on gw for 203.0.113.7 until 14:13:00 (10m)"},
		"more than are told": {spa.Granting{For: time.Hour, Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}},
			More: true},
			"ssh (tcp/22, …) is open on gw for 203.0.113.7 until 15:03:00 (1h)"},
		"until tomorrow": {spa.Granting{For: 24 * time.Hour},
			"ssh (tcp/22) is open on gw for 203.0.113.7 until 2026-11-22 14:03:00 " + now.Format("MST") + " (24h)"},
		"less than a second": {spa.Granting{For: 90 * time.Millisecond},
			"ssh (tcp/22) is open on gw for 203.0.113.7 until 14:03:00 (90ms)"},
	} {
		a.Receipt.Services = []spa.Granting{c.granted}
		if got := k.openLine(a, 0, service.Service{Name: "ssh"}, now); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
	a.Receipt.Source, a.Receipt.Services = netip.Addr{}, []spa.Granting{{For: time.Minute}}
	if got, want := k.openLine(a, 0, service.Service{Name: "ssh"}, now),
		"ssh (tcp/22) is open on gw until 14:04:00 (1m)"; got != want {
		t.Errorf("without an address: got %q, want %q", got, want)
	}
	unknown := k.openLine(client.Answer{Verdict: client.Opened}, 0, service.Service{Name: "new"}, now)
	if unknown != "new is open on gw" {
		t.Errorf("without a receipt: got %q", unknown)
	}
}

// TestHostileFinding: text from others in a finding of doctor cannot end a line or move the cursor.
func TestHostileFinding(t *testing.T) {
	var out bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	const hostile = "a\x1b[2J\n\u202eb"
	lab.Must(t, (&diagnosis{}).tell(cmd, doctor.Finding{State: doctor.Good, Text: hostile, Advice: hostile,
		Sign: hostile}))
	if strings.ContainsAny(out.String(), "\x1b\u202e") || strings.Count(out.String(), "\n") != 3 {
		t.Errorf("got %q", &out)
	}
}

// TestTranslatedIsSaid: if the gateway certainly let in another address than this machine's, there is a warning.
func TestTranslatedIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		own, in string
		verdict client.Verdict
		says    string
	}{
		"the own":         {"8.8.4.4", "8.8.4.4", client.Opened, ""},
		"an ordinary NAT": {"10.0.0.2", "8.8.4.4", client.Opened, ""},
		"a part of a tunnel": {"8.8.4.4", "8.8.8.8", client.Opened,
			"gw let in 8.8.8.8, but this machine reaches it from 8.8.4.4"},
		"NAT64": {"2a00::4", "8.8.8.8", client.Opened, "gw let in 8.8.8.8, but this machine reaches it from " +
			"2a00::4: a translator (NAT64)"},
		"refused anyway": {"8.8.4.4", "8.8.8.8", client.Refused, ""},
	} {
		k, cmd, stderr := answered()
		a := answerFrom("192.0.2.1", c.verdict, spa.Granted)
		a.Route.Own, a.Receipt.Source = netip.MustParseAddr(c.own), netip.MustParseAddr(c.in)
		k.caution(cmd, a)
		if got := stderr.String(); c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%s: got %q, want %q", name, got, c.says)
		}
	}
}
