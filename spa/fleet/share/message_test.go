package share_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"

	"sallyport/spa/fleet/share"
	"sallyport/spa/lab"
)

const (
	fleetID = "0123456789abcdef0123456789abcdef"
	hexName = "000102030405060708090a0b0c0d0e0f"
)

var (
	name  = share.Name{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	token = share.Token{255}
)

// messages has one of each kind.
var messages = []share.Message{
	{Kind: share.Hello, Version: share.Version, Fleet: fleetID, Site: "gw", Member: "gw1", Seconds: 125},
	{Kind: share.AskSession, Seq: 1, Run: token},
	{Kind: share.Read, Seq: 2},
	{Kind: share.Spend, Seq: 1<<64 - 1, Nonce: name, ID: name, Token: token},
	{Kind: share.Settle, Seq: 4, ID: name, Value: []byte{0}, Seconds: 1},
	{Kind: share.PutFloor, Seq: 5, ID: name, Value: make([]byte, share.MaxValue), Seconds: share.MaxSeconds},
	{Kind: share.Ack, Seq: 6, Run: token, Revision: 1<<63 - 1},
	{Kind: share.Leave, Run: token},
	{Kind: share.InSession, Seq: 1, Revision: 7},
	{Kind: share.Refused, Seq: 1},
	{Kind: share.Begin, Seq: 2, Revision: 9},
	{Kind: share.Event, Key: "s/gw1", Value: []byte(hexName), Revision: 8},
	{Kind: share.Event, Key: "o/" + hexName, Deleted: true, Revision: 10},
	{Kind: share.End, Seq: 2},
	{Kind: share.Won, Seq: 3},
	{Kind: share.Spent, Seq: 3},
	{Kind: share.Repeat, Seq: 3, Token: token},
	{Kind: share.Repeat, Seq: 3, Token: token, Value: []byte("sealed")},
	{Kind: share.Done, Seq: 5, Revision: 11},
	{Kind: share.Done, Seq: 4},
	{Kind: share.Failed, Seq: 4},
}

// TestMessages: a message arrives as it was sent, several in one go as well.
func TestMessages(t *testing.T) {
	var wire bytes.Buffer
	conn := share.NewConn(&wire)
	lab.Must(t, conn.Write(messages...))
	for _, want := range messages {
		if got, err := conn.Read(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %.200v, %v", want.Kind, got, err)
		}
	}
	if _, err := conn.Read(); err != io.EOF {
		t.Errorf("at the end: got %v, want EOF", err)
	}
}

// TestFormOfEachKind: a message lacks no field of its kind and has no other.
func TestFormOfEachKind(t *testing.T) {
	full := reflect.ValueOf(share.Message{Kind: "x", Seq: 1, Version: 1, Fleet: fleetID, Site: "gw", Member: "gw1",
		Run: token, Nonce: name, ID: name, Token: token, Key: "s/gw1", Value: []byte("x"), Deleted: true, Seconds: 1,
		Revision: 1})
	optional := map[share.Kind]string{share.Repeat: "Value", share.Done: "Revision"}
	for _, m := range messages {
		for i := 1; i < full.NumField(); i++ { // every field but Kind
			changed := m
			field, what := reflect.ValueOf(&changed).Elem().Field(i), full.Type().Field(i).Name
			if field.IsZero() {
				field.Set(full.Field(i))
			} else {
				field.SetZero()
			}
			if _, err := changed.Line(); err == nil && optional[m.Kind] != what {
				t.Errorf("%s is written with another %s: %.200v", m.Kind, what, changed)
			}
		}
	}
}

// TestHostileLines: what no Write would write is refused.
func TestHostileLines(t *testing.T) {
	won := `{"kind":"won","seq":3}`
	if _, err := share.Parse([]byte(won + "\n")); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"", "\n", "null\n", "[]\n", "{}\n", `{"kind":"won"}` + "\n", `{"kind":"won","seq":0}` + "\n", won,
		won + " \n", " " + won + "\n", won + won + "\n", won + "\n\n", strings.ToUpper(won) + "\n",
		`{"Kind":"won","seq":3}` + "\n", `{"seq":3,"kind":"won"}` + "\n", `{"kind":"won","seq":3,"seq":3}` + "\n",
		`{"kind":"won","seq":3,"more":1}` + "\n", `{"kind":"won","seq":3.0}` + "\n", `{"kind":"won","seq":-3}` + "\n",
		`{"kind":"won","seq":18446744073709551616}` + "\n", `{"kind":"won","seq":3,"version":0}` + "\n",
		`{"kind":"win","seq":3}` + "\n", `{"kind":"w\u006fn","seq":3}` + "\n",
		`{"kind":"leave","run":"` + strings.Repeat("0", 32) + `"}` + "\n",
		`{"kind":"leave","run":"` + strings.Repeat("A", 32) + `"}` + "\n",
		`{"kind":"leave","run":"` + strings.Repeat("a", 31) + `"}` + "\n",
		`{"kind":"event","key":"s/../x","value":"eA==","revision":1}` + "\n",
		`{"kind":"event","key":"n/` + hexName + `","value":"eA==","revision":1}` + "\n",
		`{"kind":"event","key":"f/` + hexName + `0","value":"eA==","revision":1}` + "\n",
		`{"kind":"event","key":"s/gw1","value":"eB==","revision":1}` + "\n",
		`{"kind":"event","key":"s/gw1","value":"eA==","deleted":true,"revision":1}` + "\n",
		`{"kind":"event","key":"s/gw1","revision":1}` + "\n",
		`{"kind":"event","key":"s/gw1","deleted":true,"revision":-1}` + "\n",
		`{"kind":"hello","version":1,"fleet":"` + fleetID + `","site":"GW","member":"gw1","seconds":1}` + "\n",
		`{"kind":"hello","version":1,"fleet":"1","site":"gw","member":"gw1","seconds":1}` + "\n",
		`{"kind":"hello","version":1,"fleet":"` + fleetID + `","site":"gw","member":"gw1","seconds":9000000}` + "\n",
		`{"kind":"hello","version":1,"fleet":"` + fleetID + `","site":"gw","member":"gw1","seconds":-1}` + "\n",
	} {
		if m, err := share.Parse([]byte(line)); err == nil || !reflect.DeepEqual(m, share.Message{}) {
			t.Errorf("%q: got %v, %v", line, m, err)
		}
	}
}

// TestLongMessage: neither side takes a line or a value of any length.
func TestLongMessage(t *testing.T) {
	long := share.Message{Kind: share.Repeat, Seq: 1, Token: token, Value: make([]byte, share.MaxValue+1)}
	var wire bytes.Buffer
	if err := share.NewConn(&wire).Write(messages[0], long); err == nil || wire.Len() != 0 {
		t.Errorf("a value that is too long: got %v, and %d bytes are written", err, wire.Len())
	}
	endless := struct {
		io.Reader
		io.Writer
	}{io.MultiReader(strings.NewReader(`{"kind":"`), zeros{}), io.Discard}
	if _, err := share.NewConn(endless).Read(); !errors.Is(err, share.ErrLong) {
		t.Errorf("a line without end: got %v", err)
	}
	torn := bytes.NewBufferString(`{"kind":"won",`)
	if _, err := share.NewConn(torn).Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a line that is cut off: got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

// TestManyWriters: messages of several goroutines do not mix.
func TestManyWriters(t *testing.T) {
	here, there := net.Pipe()
	defer here.Close()
	conn := share.NewConn(here)
	for range 8 {
		go func() {
			for range 100 {
				if conn.Write(messages...) != nil {
					return
				}
			}
		}()
	}
	reader := share.NewConn(there)
	for range 800 * len(messages) {
		lab.Value(reader.Read())(t)
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range messages {
		f.Add(lab.Value(m.Line())(f))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := share.Parse(line)
		if err != nil {
			if !reflect.DeepEqual(m, share.Message{}) {
				t.Errorf("a refused line has a message: %v", m)
			}
			return
		}
		if again := lab.Value(m.Line())(t); !bytes.Equal(line, again) {
			t.Errorf("%q is written as %q", line, again)
		}
	})
}
