package share

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
)

// Limits of outcomes and floors.
const (
	MaxServices = 256            // names in one: a client's grants
	MaxFloors   = 256            // topics in one
	MaxReceipt  = 256            // bytes of a receipt before it is sealed
	MaxText     = MaxValue - 512 // bytes of an encoded outcome or floor, which leaves room for the seal
)

// An Outcome is what a member decided about a request: others answer a retry of it with the receipt, and install what
// it granted.
type Outcome struct {
	Key      keys.ID      // the client's key that made the request
	Client   string       // its name, for logs: members look it up by Key
	From     netip.Addr   // the source address, stated or seen, without a zone
	LetIn    netip.Prefix // the network or address that the request names; zero: From
	Services []string     // as requested: "ssh", "tcp/8443"
	Receipt  []byte
	Stated   bool      // whether the request states its source address
	First    time.Time // the request's first stamp: floors are compared with it
	Until    time.Time // the end of its last grant; zero: it granted nothing
}

// wireOutcome and wireFloor are the JSON of outcomes and floors. Times are nanoseconds since 1970.
type wireOutcome struct {
	Key      string       `json:"key"`
	Client   string       `json:"client"`
	From     netip.Addr   `json:"from"`
	LetIn    netip.Prefix `json:"let_in,omitzero"`
	Services []string     `json:"services"`
	Receipt  []byte       `json:"receipt"`
	Stated   bool         `json:"stated,omitempty"`
	First    int64        `json:"first"`
	Until    int64        `json:"until,omitempty"`
}

// Encode returns the outcome as ParseOutcome parses it, or an error if it is no valid outcome.
func (o *Outcome) Encode() ([]byte, error) {
	text, err := json.Marshal(wireOutcome{Key: o.Key.String(), Client: o.Client, From: o.From, LetIn: o.LetIn,
		Services: o.Services, Receipt: o.Receipt, Stated: o.Stated, First: nanoseconds(o.First), Until: nanoseconds(o.Until)})
	if err == nil {
		err = o.check()
	}
	if err != nil {
		return nil, fmt.Errorf("share: an outcome: %w", err)
	}
	return bounded(text)
}

// ParseOutcome parses what Encode returns.
func ParseOutcome(text []byte) (*Outcome, error) {
	var w wireOutcome
	if len(text) > MaxText {
		return nil, errSize
	}
	if err := strict(text, &w); err != nil {
		return nil, fmt.Errorf("share: an outcome: %w", err)
	}
	id, err := keys.ParseID(w.Key)
	if err != nil {
		return nil, fmt.Errorf("share: an outcome: %w", err)
	}
	o := &Outcome{Key: id, Client: w.Client, From: w.From, LetIn: w.LetIn, Services: w.Services, Receipt: w.Receipt,
		Stated: w.Stated, First: moment(w.First), Until: moment(w.Until)}
	again, err := o.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, again) {
		return nil, errForm
	}
	return o, nil
}

func (o *Outcome) check() error {
	switch {
	case o.Key == 0:
		return errors.New("it has no client key")
	case !plain(o.From):
		return errors.New("its source is no plain address")
	case o.LetIn != netip.Prefix{} && !plainNetwork(o.LetIn):
		return errors.New("it lets in no valid network")
	case len(o.Services) == 0:
		return errors.New("it has no services")
	case len(o.Receipt) == 0 || len(o.Receipt) > MaxReceipt:
		return fmt.Errorf("a receipt is 1 to %d bytes", MaxReceipt)
	case !stamp(o.First) || !o.Until.IsZero() && !stamp(o.Until):
		return errTime
	}
	return errors.Join(service.ValidName(o.Client), checkServices(o.Services))
}

// A Floor refuses what was stamped up to a time, and says what ended with it: the grants of Client, or those that let
// in Of, or both together, for Services.
type Floor struct {
	Topics   []TopicFloor
	Client   string       // empty: any
	Of       netip.Prefix // an address or network; zero: any
	Services []string     // nil: all
	Cut      bool         // sessions end too
}

// A TopicFloor is the floor of one topic, in the sense of the server's journal.
type TopicFloor struct {
	Topic [16]byte
	Stamp time.Time // what was first stamped at or before it is refused
}

type wireFloor struct {
	Topics   []wireTopic  `json:"topics"`
	Client   string       `json:"client,omitempty"`
	Of       netip.Prefix `json:"of,omitzero"`
	Services []string     `json:"services,omitempty"`
	Cut      bool         `json:"cut,omitempty"`
}

type wireTopic struct {
	Topic Name  `json:"topic"`
	Stamp int64 `json:"stamp"`
}

// Encode returns the floor as ParseFloor parses it, or an error if it is no valid floor.
func (f *Floor) Encode() ([]byte, error) {
	w := wireFloor{Client: f.Client, Of: f.Of, Services: f.Services, Cut: f.Cut}
	for _, t := range f.Topics {
		w.Topics = append(w.Topics, wireTopic{t.Topic, nanoseconds(t.Stamp)})
	}
	text, err := json.Marshal(w)
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return nil, fmt.Errorf("share: a floor: %w", err)
	}
	return bounded(text)
}

// ParseFloor parses what Encode returns.
func ParseFloor(text []byte) (*Floor, error) {
	var w wireFloor
	if len(text) > MaxText {
		return nil, errSize
	}
	if err := strict(text, &w); err != nil {
		return nil, fmt.Errorf("share: a floor: %w", err)
	}
	f := &Floor{Client: w.Client, Of: w.Of, Services: w.Services, Cut: w.Cut}
	for _, t := range w.Topics {
		f.Topics = append(f.Topics, TopicFloor{t.Topic, moment(t.Stamp)})
	}
	again, err := f.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(text, again) {
		return nil, errForm
	}
	return f, nil
}

func (f *Floor) check() error {
	switch {
	case len(f.Topics) == 0 || len(f.Topics) > MaxFloors:
		return fmt.Errorf("it has 1 to %d topics", MaxFloors)
	case f.Client == "" && f.Of == netip.Prefix{}:
		return errors.New("it names neither client nor address")
	case f.Of != netip.Prefix{} && !plainNetwork(f.Of):
		return errors.New("it is of no valid network")
	case f.Services != nil && len(f.Services) == 0:
		return errors.New("it is for no service")
	case slices.ContainsFunc(f.Topics, func(t TopicFloor) bool { return t.Topic == [16]byte{} || !stamp(t.Stamp) }):
		return errors.New("a topic or stamp is zero or out of range")
	case f.Client != "" && service.ValidName(f.Client) != nil:
		return service.ValidName(f.Client)
	}
	return checkServices(f.Services)
}

var (
	errSize = fmt.Errorf("share: a value is at most %d bytes", MaxText)
	errTime = errors.New("a time is out of range")
)

func bounded(text []byte) ([]byte, error) {
	if len(text) > MaxText {
		return nil, errSize
	}
	return text, nil
}

func checkServices(names []string) error {
	if len(names) > MaxServices {
		return fmt.Errorf("it names more than %d services", MaxServices)
	}
	for _, name := range names {
		if _, err := service.ParseService(name); err != nil {
			return err
		}
	}
	return nil
}

// plain reports whether another host can mean the same by this address.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

func plainNetwork(p netip.Prefix) bool { return p.IsValid() && plain(p.Addr()) && p == p.Masked() }

// stamp reports whether nanoseconds since 1970 can express the time.
func stamp(t time.Time) bool {
	n := t.UnixNano()
	return n > 0 && time.Unix(0, n).Equal(t)
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func moment(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
