package policy

import (
	"errors"
	"testing"
	"time"

	"sallyport/firewall"
	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

func spans(t *testing.T, texts ...string) []service.Span {
	t.Helper()
	if len(texts) == 0 {
		return nil
	}
	s := lab.Value(service.ParseSpans(texts))(t)
	return s
}

// berlin returns a time by Berlin's clock. In 2026 it is set forward on Sunday 29 March from 02:00 to 03:00, and back
// on Sunday 25 October from 03:00 to 02:00.
func berlin(t *testing.T, text string) time.Time {
	t.Helper()
	zone := lab.Value(time.LoadLocation("Europe/Berlin"))(t)
	at := lab.Value(time.ParseInLocation("2006-01-02 15:04:05", text, zone))(t)
	return at
}

// TestOpen: how long a service stays open, out of 100 hours.
func TestOpen(t *testing.T) {
	const most = 100 * time.Hour
	in := func(texts ...string) []service.Span { return spans(t, texts...) }
	secondHour := berlin(t, "2026-10-25 01:00:00").Add(2 * time.Hour) // 02:00 for the second time
	tests := []struct {
		name  string
		spans []service.Span
		at    time.Time
		want  time.Duration
	}{
		{"always", nil, berlin(t, "2026-03-02 12:00:00"), most},
		{"within", in("mon-fri 08:00-18:00"), berlin(t, "2026-03-02 12:00:00"), 6 * time.Hour},
		{"outside", in("mon-fri 08:00-18:00"), berlin(t, "2026-03-02 07:59:59"), 0},
		{"at the end", in("mon-fri 08:00-18:00"), berlin(t, "2026-03-02 18:00:00"), 0},
		{"the latest of two ends", in("mon 08:00-12:00", "mon 10:00-14:00"), berlin(t, "2026-03-02 11:00:00"), 3 * time.Hour},
		{"one span after the other", in("mon 08:00-12:00", "mon 12:00-14:00"), berlin(t, "2026-03-02 11:00:00"),
			3 * time.Hour},
		{"a minute between two spans", in("mon 08:00-12:00", "mon 12:01-14:00"), berlin(t, "2026-03-02 11:00:00"), time.Hour},
		{"over midnight", in("fri 22:00-02:00"), berlin(t, "2026-03-06 23:00:00"), 3 * time.Hour},
		{"after midnight", in("fri 22:00-02:00"), berlin(t, "2026-03-07 01:30:00"), 30 * time.Minute},
		{"midnight between days", in("mon-tue 00:00-24:00"), berlin(t, "2026-03-02 23:00:00"), 25 * time.Hour},
		{"the whole week", in("mon-sun 00:00-24:00"), berlin(t, "2026-03-02 12:00:00"), most},
		{"the whole week in nights and days", in("mon-sun 20:00-08:00", "mon-sun 08:00-20:00"),
			berlin(t, "2026-03-02 12:00:00"), most},

		{"an hour is skipped in spring", in("sun 01:00-04:00"), berlin(t, "2026-03-29 01:00:00"), 2 * time.Hour},
		{"the night is an hour shorter", in("sat 22:00-06:00"), berlin(t, "2026-03-28 22:00:00"), 7 * time.Hour},
		{"the end is skipped in spring", in("sun 01:00-02:30"), berlin(t, "2026-03-29 01:30:00"), 30 * time.Minute},
		{"the whole span is skipped in spring", in("sun 02:00-03:00"), berlin(t, "2026-03-29 01:59:59").Add(time.Second), 0},
		{"the beginning is skipped in spring", in("sun 02:30-04:00"), berlin(t, "2026-03-29 01:59:59").Add(time.Second),
			time.Hour},
		{"an hour comes twice in autumn", in("sun 01:00-04:00"), berlin(t, "2026-10-25 01:00:00"), 4 * time.Hour},
		{"the night is an hour longer", in("sat 22:00-06:00"), berlin(t, "2026-10-24 22:00:00"), 9 * time.Hour},
		{"the end comes twice: the first ends it", in("sun 01:00-02:30"), berlin(t, "2026-10-25 01:00:00"), 90 * time.Minute},
		{"between the two ends", in("sun 01:00-02:30"), berlin(t, "2026-10-25 01:00:00").Add(100 * time.Minute), 0},
		{"it shows the hours again", in("sun 01:00-02:30"), secondHour, 30 * time.Minute},
		{"the whole hour twice", in("sun 02:00-03:00"), berlin(t, "2026-10-25 01:00:00").Add(time.Hour), 2 * time.Hour},
	}
	for _, test := range tests {
		if got := open(test.spans, test.at, most); got != test.want {
			t.Errorf("%s: got %v at %v, want %v", test.name, got, test.at, test.want)
		}
	}
	if got := open(in("mon 08:00-18:00"), berlin(t, "2026-03-02 12:00:00"), time.Minute); got != time.Minute {
		t.Errorf("got %v, want no more than was asked for", got)
	}
}

// TestHours: a grant is for hours that both the service and the client allow, in the server's zone, and never outlasts
// them.
func TestHours(t *testing.T) {
	monday := berlin(t, "2026-03-02 17:50:00") // 16:50 UTC
	tests := []struct {
		name            string
		zone            string
		service, client []service.Span
		expires         time.Time
		asked           time.Duration
		want            time.Duration // zero: denied
	}{
		{"no hours", "Europe/Berlin", nil, nil, time.Time{}, time.Hour, time.Hour},
		{"clipped to the service's", "Europe/Berlin", spans(t, "mon 08:00-18:00"), nil, time.Time{}, time.Hour,
			10 * time.Minute},
		{"clipped to the client's", "Europe/Berlin", nil, spans(t, "mon 08:00-18:00"), time.Time{}, time.Hour,
			10 * time.Minute},
		{"clipped to the shorter", "Europe/Berlin", spans(t, "mon 08:00-18:00"), spans(t, "mon 08:00-17:55"), time.Time{},
			time.Hour, 5 * time.Minute},
		{"what is shorter is not lengthened", "Europe/Berlin", spans(t, "mon 08:00-18:00"), nil, time.Time{}, time.Minute,
			time.Minute},
		{"not the service's day", "Europe/Berlin", spans(t, "tue-sun 00:00-24:00"), nil, time.Time{}, 0, 0},
		{"not the client's", "Europe/Berlin", nil, spans(t, "mon 00:00-17:50"), time.Time{}, 0, 0},
		{"the client's, not the service's", "Europe/Berlin", spans(t, "mon 18:00-20:00"), spans(t, "mon 08:00-18:00"),
			time.Time{}, 0, 0},
		{"in another zone it is later", "Europe/Helsinki", spans(t, "mon 08:00-18:00"), nil, time.Time{}, 0, 0},
		{"in another zone it is earlier", "UTC", spans(t, "mon 08:00-18:00"), nil, time.Time{}, time.Hour, time.Hour},
		{"clipped to the end of the key", "Europe/Berlin", nil, nil, monday.Add(time.Minute), time.Hour, time.Minute},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := config.Default("/etc/spa")
			c.Zone = test.zone
			c.Services = []config.Service{{Name: "ssh", Ports: ports(t, "tcp/22"), For: time.Minute,
				MaxFor: 2 * time.Hour, When: test.service}}
			k := knock(keys.Client{Allow: []string{"ssh"}, When: test.client, Expires: test.expires}, ssh)
			k.For = test.asked
			grants, err := New(&c, held{}).Authorize(k, here, monday, monday)
			if test.want == 0 {
				denial, ok := errors.AsType[*Denial](err)
				if !ok || denial.Reason != spa.ReasonNotNow || denial.Service != "ssh" || grants != nil {
					t.Fatalf("got %v and %v, want that it is not the time", grants, err)
				}
				return
			}
			if err != nil || !grants[0].Until.Equal(monday.Add(test.want)) {
				t.Errorf("got %v and %v, want until %v", grants, err, monday.Add(test.want))
			}
		})
	}
}

// TestOutOfHoursAllOrNone: a service that is outside its hours makes the whole request fail, and nothing is charged.
func TestOutOfHoursAllOrNone(t *testing.T) {
	p := newPolicy(t, held{})
	p.services[0].When = spans(t, "mon-sat 00:00-24:00") // now is a Sunday
	k := knock(keys.Client{Allow: []string{"ssh", "mosh"}}, ssh, mosh)
	for range 10 {
		if grants, err := p.Authorize(k, here, now, now); err == nil || grants != nil {
			t.Fatalf("got %v and %v", grants, err)
		}
	}
	if _, err := p.Authorize(knock(keys.Client{Allow: []string{"ssh"}}, ssh), here, now, now); err != nil {
		t.Errorf("what was refused was charged: %v", err)
	}
}

// TestClosableAtAnyHour: closing works at any hour.
func TestClosableAtAnyHour(t *testing.T) {
	p := newPolicy(t, held{})
	p.services[1].When = spans(t, "mon 08:00-18:00")
	if err := p.Closable(knock(keys.Client{Allow: []string{"ssh"}, When: spans(t, "tue 08:00-18:00")}, ssh),
		now); err != nil {
		t.Error(err)
	}
}

// TestRetryAtTheEndOfTheHours: a retry of a request is clipped as the first packet was.
func TestRetryAtTheEndOfTheHours(t *testing.T) {
	p := newPolicy(t, held{})
	p.services[1].When = spans(t, "sun 08:00-12:01")
	k := knock(keys.Client{Allow: []string{"ssh"}}, ssh)
	k.For = 5 * time.Minute
	grants, err := p.Authorize(k, here, now.Add(-10*time.Second), now)
	if err != nil || !grants[0].Until.Equal(now.Add(time.Minute)) {
		t.Errorf("got %v and %v, want until the hours end", grants, err)
	}
}

// TestKeepsHours: a reload with narrower hours, or a restart, ends grants that outlast the hours as they are now.
func TestKeepsHours(t *testing.T) {
	tests := []struct {
		name            string
		service, client []service.Span
		expires         time.Time
		want            bool
	}{
		{"within", spans(t, "sun 08:00-12:05"), spans(t, "sun 08:00-12:05"), time.Time{}, true},
		{"until the end, by a clock that was set by less than two seconds", spans(t, "sun 08:00-12:05"), nil,
			now.Add(5*time.Minute - time.Second), true},
		{"until the end, by a clock that was set by two seconds", spans(t, "sun 08:00-12:05"), nil,
			now.Add(5*time.Minute - 2*time.Second), true},
		{"past the end of the service's", spans(t, "sun 08:00-12:04"), nil, time.Time{}, false},
		{"past the end of the client's", nil, spans(t, "sun 08:00-12:04"), time.Time{}, false},
		{"not the service's hours any more", spans(t, "mon 08:00-18:00"), nil, time.Time{}, false},
		{"not the client's hours any more", nil, spans(t, "sun 08:00-12:00"), time.Time{}, false},
		{"past the end of the key", nil, nil, now.Add(time.Minute), false},
	}
	for _, test := range tests {
		p := newPolicy(t, nil)
		p.services[1].When = test.service
		g := firewall.Grant{Client: "alice", Service: "ssh", Source: here, Ports: ports(t, "tcp/22"),
			Until: now.Add(5 * time.Minute)}
		client := &keys.Client{Allow: []string{"ssh"}, When: test.client, Expires: test.expires}
		if got := p.Keeps(client, g, now); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		g.Until = now.Add(time.Second)
		outside := open(test.service, now, 1) == 0 || open(test.client, now, 1) == 0
		if got := p.Keeps(client, g, now); got == outside {
			t.Errorf("%s, in its last second: got %v", test.name, got)
		}
	}
}

// TestWith: a policy that replaces another has the new file's rules and the old one's counts.
func TestWith(t *testing.T) {
	p := newPolicy(t, held{})
	k := knock(keys.Client{Allow: []string{"ssh", "imap"}}, ssh)
	for range 5 {
		_, err := p.Authorize(k, here, now, now)
		lab.Must(t, err)
	}
	c := config.Default("/etc/spa")
	c.Services = []config.Service{{Name: "imap", Ports: ports(t, "tcp/993"), For: time.Minute, MaxFor: time.Minute}}
	c.Limits.GrantsPerHour = 5
	p = p.With(&c)
	reason := func(name string) spa.Status {
		_, err := p.Authorize(knock(*k.Client, service.Service{Name: name}), here, now, now)
		denial, _ := errors.AsType[*Denial](err)
		if denial == nil {
			return 0
		}
		return denial.Reason
	}
	if got := reason("ssh"); got != spa.ReasonNoService {
		t.Errorf("the service that is gone: got %v", got)
	}
	if got := reason("imap"); got != spa.ReasonTooManyPerHour {
		t.Errorf("with the hour's grants used up: got %v", got)
	}
	c.Limits.GrantsPerHour = 6
	p = p.With(&c)
	if got := reason("imap"); got != 0 {
		t.Errorf("one more a hour: got %v", got)
	}
	if got := reason("imap"); got != spa.ReasonTooManyPerHour {
		t.Errorf("and no more than one: got %v", got)
	}
}
