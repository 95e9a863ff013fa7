package service

import (
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

func TestSpan(t *testing.T) {
	for text, want := range map[string]Span{
		"mon-fri 08:00-18:00": {time.Monday, time.Friday, 8 * 60, 18 * 60},
		"sat 09:05-12:59":     {time.Saturday, time.Saturday, 9*60 + 5, 12*60 + 59},
		"fri 22:00-02:00":     {time.Friday, time.Friday, 22 * 60, 2 * 60},
		"sat-mon 00:00-24:00": {time.Saturday, time.Monday, 0, 24 * 60},
		"mon-sun 23:59-24:00": {time.Monday, time.Sunday, 24*60 - 1, 24 * 60},
		"sun-sat 00:01-00:02": {time.Sunday, time.Saturday, 1, 2},
	} {
		got, err := parseSpan(text)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
		if got.String() != text {
			t.Errorf("%s is written %s", text, got)
		}
	}
	if got := (Span{}).String(); got != "" {
		t.Errorf("no span is written %q", got)
	}
}

func TestParseSpanRefuses(t *testing.T) {
	const form = "days and hours are written"
	for text, want := range map[string]string{
		"": form, "mon": form, " 08:00-18:00": form, "08:00-18:00": form, "mon  08:00-18:00": form, "mon 08:00-18:00 ": form,
		"mon\t08:00-18:00": form,
		"Mon 08:00-18:00":  form, "monday 08:00-18:00": form, "mon,tue 08:00-18:00": form, "mon-tue-wed 08:00-18:00": form,
		"mon- 08:00-18:00": form, "-mon 08:00-18:00": form,
		"mon 8:00-18:00": form, "mon 08:00": form, "mon 08:00-": form, "mon 08-18": form, "mon 08:00-18:00-20:00": form,
		"mon 08:60-18:00": form, "mon 08:00-24:01": form,
		"mon 08:00-25:00": form, "mon 08.00-18.00": form, "mon +8:00-18:00": form, "mon 08:00–18:00": form,
		"mon 08:0x-18:00": form, "mon 08:00:00-18:00:00": form,
		"mon-mon 08:00-18:00": `one day is written "mon"`,
		"mon 24:00-08:00":     "midnight is 00:00 at the start",
		"mon 08:00-00:00":     "midnight at the end of a span is 24:00",
		"mon 00:00-00:00":     "midnight at the end of a span is 24:00",
		"mon 08:00-08:00":     "a whole day is 00:00-24:00",
	} {
		if got, err := parseSpan(text); err == nil || got != (Span{}) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, %v, want %s", text, got, err, want)
		}
	}
}

func TestSpanLeft(t *testing.T) {
	// 2 March 2026 is a Monday.
	at := func(day, hour, minute int) time.Time { return time.Date(2026, 3, day, hour, minute, 0, 0, time.UTC) }
	for _, test := range []struct {
		span string
		at   time.Time
		want time.Duration
	}{
		{"mon-fri 08:00-18:00", at(2, 8, 0), 10 * time.Hour},
		{"mon-fri 08:00-18:00", at(2, 8, 0).Add(-1), 0},
		{"mon-fri 08:00-18:00", at(6, 17, 59), time.Minute},
		{"mon-fri 08:00-18:00", at(6, 18, 0).Add(-1), 1},
		{"mon-fri 08:00-18:00", at(6, 18, 0), 0},
		{"mon-fri 08:00-18:00", at(7, 12, 0), 0},
		{"mon-fri 08:00-18:00", at(8, 12, 0), 0},
		{"sat-mon 08:00-18:00", at(7, 12, 0), 6 * time.Hour},
		{"sat-mon 08:00-18:00", at(8, 12, 0), 6 * time.Hour},
		{"sat-mon 08:00-18:00", at(2, 12, 0), 6 * time.Hour},
		{"sat-mon 08:00-18:00", at(3, 12, 0), 0},
		{"sat-mon 08:00-18:00", at(6, 12, 0), 0},
		{"fri 22:00-02:00", at(6, 22, 0), 4 * time.Hour},
		{"fri 22:00-02:00", at(6, 21, 59), 0},
		{"fri 22:00-02:00", at(7, 0, 0), 2 * time.Hour},
		{"fri 22:00-02:00", at(7, 1, 59), time.Minute},
		{"fri 22:00-02:00", at(7, 2, 0), 0},
		{"fri 22:00-02:00", at(6, 1, 0), 0},  // Thursday night
		{"fri 22:00-02:00", at(7, 22, 0), 0}, // Saturday night
		{"sat 22:00-02:00", at(8, 1, 0), time.Hour},
		{"mon 00:00-24:00", at(2, 0, 0), 24 * time.Hour},
		{"mon 00:00-24:00", at(3, 0, 0), 0},
		{"fri 22:00-21:00", at(6, 21, 30), 0},
		{"fri 22:00-21:00", at(7, 20, 59), time.Minute},
	} {
		s := lab.Value(parseSpan(test.span))(t)
		if got := s.Remaining(test.at); got != test.want {
			t.Errorf("%s at %s: got %v, want %v", s, test.at.Format("Mon 15:04:05.999999999"), got, test.want)
		}
	}
	if left := (Span{}).Remaining(at(1, 0, 0)); left != 0 {
		t.Errorf("no span has %v left", left)
	}
}

func TestParseSpans(t *testing.T) {
	spans, err := ParseSpans([]string{"mon 08:00-09:00", "tue 08:00-09:00"})
	if err != nil || len(spans) != 2 || spans[1].First != time.Tuesday {
		t.Errorf("got %v, %v", spans, err)
	}
	for _, test := range []struct {
		texts []string
		want  string
	}{
		{nil, "should be 1 to 32 spans"},
		{make([]string, 33), "should be 1 to 32 spans"},
		{[]string{"mon 08:00-09:00", "x"}, "entry 2: days and hours are written"},
		{[]string{"mon 08:00-09:00", "mon 08:00-09:00"}, "entry 2 is listed twice"},
	} {
		if spans, err := ParseSpans(test.texts); err == nil || spans != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, %v, want %s", test.texts, spans, err, test.want)
		}
	}
}

// FuzzSpan: a span that parses prints back the same, and has no other spelling.
func FuzzSpan(f *testing.F) {
	for _, text := range []string{"mon-fri 08:00-18:00", "fri 22:00-02:00", "sat-mon 00:00-24:00",
		"mon 24:00-00:00", "sun  1:00-2:00", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseSpan(text)
		if err != nil {
			return
		}
		if s.String() != text {
			t.Errorf("%q is written %q", text, s)
		}
		if s == (Span{}) || s.From == s.To || s.To == 0 || s.From >= dayMinutes || s.To > dayMinutes {
			t.Errorf("%q is read as %+v", text, s)
		}
	})
}
