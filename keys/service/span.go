package service

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// maxSpans is how many spans a "when" may have.
const maxSpans = 32

const dayMinutes = 24 * 60

// Span is a part of the week in local time: "mon-fri 08:00-18:00" or, past midnight, "fri 22:00-02:00". Spans can be
// compared with ==. The zero Span is empty: it contains no time, and String returns "".
type Span struct {
	First, Last time.Weekday // the days on which it begins; Last may come before First: "sat-mon"
	From, To    uint16       // minutes since midnight, To at most 24:00; below From it ends on the next day
}

// weekdays are the names of days in files, in the order of [time.Weekday].
var weekdays = [7]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

var errSpan = errors.New(`days and hours are written "mon-fri 08:00-18:00", "sat 09:00-12:00" or, over ` +
	`midnight, "fri 22:00-02:00"`)

// parseSpan reads the form that String writes, and no other.
func parseSpan(text string) (Span, error) {
	days, hours, ok := strings.Cut(text, " ")
	if !ok {
		return Span{}, errSpan
	}
	first, last, err := parseDays(days)
	if err != nil {
		return Span{}, err
	}
	from, to, err := parseHours(hours)
	if err != nil {
		return Span{}, err
	}
	return Span{First: first, Last: last, From: from, To: to}, nil
}

func parseDays(text string) (first, last time.Weekday, err error) {
	firstText, lastText, isRange := strings.Cut(text, "-")
	i := slices.Index(weekdays[:], firstText)
	if i < 0 {
		return 0, 0, errSpan
	}
	if !isRange {
		return time.Weekday(i), time.Weekday(i), nil
	}
	j := slices.Index(weekdays[:], lastText)
	if j < 0 {
		return 0, 0, errSpan
	}
	if i == j {
		return 0, 0, fmt.Errorf(`one day is written %q, the whole week "mon-sun"`, weekdays[i])
	}
	return time.Weekday(i), time.Weekday(j), nil
}

func parseHours(text string) (from, to uint16, err error) {
	fromText, toText, _ := strings.Cut(text, "-")
	from, okFrom := parseMinute(fromText)
	to, okTo := parseMinute(toText)
	if !okFrom || !okTo {
		return 0, 0, errSpan
	}
	switch {
	case from == dayMinutes:
		return 0, 0, errors.New("midnight is 00:00 at the start of a span, 24:00 at its end")
	case to == 0:
		return 0, 0, errors.New("midnight at the end of a span is 24:00")
	case from == to:
		return 0, 0, errors.New("a span that ends when it begins is empty; a whole day is 00:00-24:00")
	}
	return from, to, nil
}

// parseMinute reads "00:00" to "24:00".
func parseMinute(text string) (uint16, bool) {
	if len(text) != 5 || text[2] != ':' {
		return 0, false
	}
	var n [5]uint16
	for _, i := range []int{0, 1, 3, 4} {
		if text[i] < '0' || text[i] > '9' {
			return 0, false
		}
		n[i] = uint16(text[i] - '0')
	}
	hour, minute := 10*n[0]+n[1], 10*n[3]+n[4]
	of := 60*hour + minute
	return of, minute < 60 && of <= dayMinutes
}

// String returns the form that [ParseSpans] reads.
func (s Span) String() string {
	if s == (Span{}) {
		return ""
	}
	days := weekdays[s.First]
	if s.Last != s.First {
		days += "-" + weekdays[s.Last]
	}
	return fmt.Sprintf("%s %02d:%02d-%02d:%02d", days, s.From/60, s.From%60, s.To/60, s.To%60)
}

// Remaining returns how much of the span is left at t, by local time in t's location: zero outside the span. A clock
// change in between makes it more or less.
func (s Span) Remaining(t time.Time) time.Duration {
	hour, minute, second := t.Clock()
	at := time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute + time.Duration(second)*time.Second +
		time.Duration(t.Nanosecond())
	from, to := time.Duration(s.From)*time.Minute, time.Duration(s.To)*time.Minute
	today, yesterday := s.begins(t.Weekday()), s.begins((t.Weekday()+6)%7)
	switch {
	case from < to && today && from <= at && at < to:
		return to - at
	case to < from && today && from <= at:
		return dayMinutes*time.Minute - at + to
	case to < from && yesterday && at < to:
		return to - at
	}
	return 0
}

// begins reports whether the span begins on this day of the week.
func (s Span) begins(day time.Weekday) bool {
	return (day-s.First+7)%7 <= (s.Last-s.First+7)%7
}

// ParseSpans parses the list "when" of a file. An error names the entry.
func ParseSpans(texts []string) ([]Span, error) {
	if len(texts) == 0 || len(texts) > maxSpans {
		return nil, fmt.Errorf(`should be 1 to %d spans: ["mon-fri 08:00-18:00"]; leave the line out for any time`, maxSpans)
	}
	spans := make([]Span, 0, len(texts))
	for i, text := range texts {
		s, err := parseSpan(text)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		if slices.Contains(spans, s) {
			return nil, fmt.Errorf("entry %d is listed twice", i+1)
		}
		spans = append(spans, s)
	}
	return spans, nil
}

// SpanTexts returns the spans as a file lists them.
func SpanTexts(spans []Span) []string {
	texts := make([]string, len(spans))
	for i, s := range spans {
		texts[i] = s.String()
	}
	return texts
}
