package enrol

import (
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// Shown is what lists show of a client's terms.
type Shown struct {
	State         string     `json:"state"`
	Allow         []string   `json:"allow"`
	From          []string   `json:"from,omitempty"`
	Deny          []string   `json:"deny,omitempty"`
	Widest4       int        `json:"widest4,omitempty"`
	Widest6       int        `json:"widest6,omitempty"`
	Delegate      []string   `json:"delegate,omitempty"`
	When          []string   `json:"when,omitempty"`
	MaxFor        string     `json:"max_for,omitempty"`
	RequireSource bool       `json:"require_source"`
	Expires       *time.Time `json:"expires,omitempty"`
	Revoked       *time.Time `json:"revoked,omitempty"`
}

// Show returns what lists show of a client's terms at the time now.
func Show(c *keys.Client, now time.Time) Shown {
	s := Shown{State: State(c, now), Allow: c.Allow, Widest4: c.Widest4, Widest6: c.Widest6,
		RequireSource: c.RequireSource, Expires: Known(c.Expires), Revoked: Known(c.Revoked)}
	for _, prefix := range c.From {
		s.From = append(s.From, prefix.String())
	}
	for _, prefix := range c.Deny {
		s.Deny = append(s.Deny, prefix.String())
	}
	for _, network := range c.Delegate {
		s.Delegate = append(s.Delegate, service.NetworkText(network))
	}
	if c.MaxFor > 0 {
		s.MaxFor = service.FormatDuration(c.MaxFor)
	}
	if len(c.When) > 0 {
		s.When = service.SpanTexts(c.When)
	}
	return s
}

// State returns in a word whether the client can knock at the time now.
func State(c *keys.Client, now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return "revoked"
	case !c.Expires.IsZero() && !now.Before(c.Expires):
		return "expired"
	}
	return "active"
}

// Known returns nil for the zero time, which JSON then leaves out.
func Known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
