package config

import (
	"errors"
	"time"
	_ "time/tzdata" // a small host has no table of time zones, and a confined server cannot open it

	"sallyport/keys/service"
)

// zone reads the name of a time zone. LoadLocation accepts two more names, which mean UTC and the machine's own zone.
func (l *loader) zone() {
	if l.raw.Zone == nil {
		return
	}
	name := *l.raw.Zone
	_, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		l.must("zone",
			errors.New(`should be the name of a time zone, such as "Europe/Berlin" or "UTC"; leave the line `+
				`out for the machine's own`))
		return
	}
	l.cfg.Zone = name
}

func (l *loader) when(key string, texts []string) []service.Span {
	if texts == nil {
		return nil
	}
	spans, err := service.ParseSpans(texts)
	l.must(key, err)
	return spans
}
