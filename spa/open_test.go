package spa

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func TestOpenReturnsWhatWasSealed(t *testing.T) {
	requests := map[string]Request{
		"all fields": openSSH(),
		"observed":   {Type: TypeOpen, Time: testNow, Services: []service.Service{{Name: "ssh"}}},
		"close":      {Type: TypeClose, Time: testNow, Services: []service.Service{{Name: "ssh"}}},
		"IPv6": {Type: TypeOpen, Time: testNow, Source: netip.MustParseAddr("2001:db8::2"),
			Services: []service.Service{{Proto: service.TCP, Port: 65535}}},
		"longest": {ID: RequestID(make([]byte, 16)), Type: TypeOpen, Time: testNow, For: maxFor,
			Services: []service.Service{{Name: "a2345678901234567890123456789012"}, {Proto: service.TCP, Port: 1},
				{Proto: service.TCP, Port: 2},
				{Proto: service.UDP, Port: 1}, {Proto: service.UDP, Port: 2}, {Proto: service.UDP, Port: 3}}},
		"eight": {Type: TypeOpen, Time: testNow, Services: []service.Service{{Name: "a"}, {Name: "b"}, {Name: "c"},
			{Name: "d"},
			{Name: "e"}, {Name: "f"}, {Name: "g"}, {Proto: service.TCP, Port: 1}}},
	}
	for name, want := range requests {
		t.Run(name, func(t *testing.T) {
			packet := mustSeal(t, want, alice())
			k := mustOpen(t, packet)
			if !reflect.DeepEqual(k.Request, want) {
				t.Errorf("got %+v, want %+v", k.Request, want)
			}
			if k.Nonce != Nonce(packet[:24]) || k.Len != len(packet) || k.KeyID != aliceID ||
				k.Client.Name != "alice" || !k.Key.Equal(testKey(0x80)) {
				t.Errorf("the knock does not say whose packet it is: %+v", k)
			}
		})
	}
}

func TestOpenUnmapsTheStatedSource(t *testing.T) {
	r := openSSH()
	r.Source = netip.MustParseAddr("::ffff:192.0.2.2")
	if got, want := mustOpen(t, mustSeal(t, r, alice())).Source, netip.MustParseAddr("192.0.2.2"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// refuse checks that Open returns that error and a zero Knock.
func refuse(t *testing.T, want error, packet []byte, id *Identity, c Clients, now time.Time) error {
	t.Helper()
	k, err := Open(packet, id, c, now)
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if !reflect.DeepEqual(k, Knock{}) {
		t.Errorf("an error came with a knock: %+v", k)
	}
	return err
}

func TestOpenRefusesLengths(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	for n := range 300 {
		b := make([]byte, n)
		copy(b, packet)
		want := ErrMAC
		if n < 168 || n > 256 {
			want = ErrLength
		}
		if n != len(packet) {
			refuse(t, want, b, gateway(), onlyAlice(), testNow)
		}
	}
}

func TestOpenRefusesAtTheGate(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	for name, gates := range map[string][]keys.GateKey{
		"another key": {testGate(0x41)}, "two others": {testGate(0x41), testGate(0x42)},
		"no key": nil, "a zero key": {{}},
	} {
		t.Run(name, func(t *testing.T) {
			id := gateway()
			id.Gates = gatesOf(gates...)
			refuse(t, ErrGate, packet, id, onlyAlice(), testNow)
		})
	}
	// With the right tag for each, the gate must look only at these bits.
	for bit := range 8 * bodyAt {
		refuse(t, ErrGate, flip(packet, bit), gateway(), onlyAlice(), testNow)
	}
}

func TestOpenTriesEveryGate(t *testing.T) {
	old := alice()
	old.Gate = testGate(0x41)
	id := gateway()
	id.Gates = gatesOf(testGate(0x40), testGate(0x41), testGate(0x42))
	for _, s := range []Sender{alice(), old} {
		if _, err := Open(mustSeal(t, openSSH(), s), id, onlyAlice(), testNow); err != nil {
			t.Errorf("Open: %v", err)
		}
	}
}

// TestOpenTellsOldGates: the previous gate key works until its end date, and not afterwards.
func TestOpenTellsOldGates(t *testing.T) {
	late := alice()
	late.Gate = testGate(0x41)
	packet := mustSeal(t, openSSH(), late)
	for after, open := range map[time.Duration]bool{-time.Hour: false, -time.Nanosecond: false, 0: false,
		time.Nanosecond: true, time.Hour: true} {
		id := gateway()
		id.Gates = GatesOf(keys.Gates{Current: testGate(0x40), Previous: testGate(0x41), Until: testNow.Add(after)})
		if !open {
			refuse(t, ErrGate, packet, id, onlyAlice(), testNow)
		} else if k, err := Open(packet, id, onlyAlice(), testNow); err != nil || !k.OldGate {
			t.Errorf("%v before its end: old gate %v, %v", after, k.OldGate, err)
		}
		if k, err := Open(mustSeal(t, openSSH(), alice()), id, onlyAlice(), testNow); err != nil || k.OldGate {
			t.Errorf("the new gate, %v before the other's end: old gate %v, %v", after, k.OldGate, err)
		}
	}
	if gates := GatesOf(keys.Gates{Current: testGate(0x40)}); len(gates) != 1 || !gates[0].Until.IsZero() {
		t.Errorf("a server with one key has %d gates", len(gates))
	}
}

func TestOpenRefusesUnknownClients(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	refuse(t, ErrClient, packet, gateway(), clientMap{}, testNow)

	refuse(t, ErrClient, packet, gateway(), forgetful{onlyAlice()}, testNow)

	keyless := onlyAlice()
	keyless[aliceID] = keys.Credential{Client: keys.Client{Name: "alice"}}
	refuse(t, ErrClient, packet, gateway(), keyless, testNow)
}

// forgetful returns false together with the client's data.
type forgetful struct{ clientMap }

func (f forgetful) Lookup(id keys.ID) (keys.Credential, bool) {
	c, _ := f.clientMap.Lookup(id)
	return c, false
}

func TestOpenRefusesWrongMACs(t *testing.T) {
	mallory := alice()
	mallory.Key = testKey(0x90)
	refuse(t, ErrMAC, mustSeal(t, openSSH(), mallory), gateway(), onlyAlice(), testNow)

	elsewhere := alice()
	elsewhere.Server[15] ^= 1
	refuse(t, ErrMAC, mustSeal(t, openSSH(), elsewhere), gateway(), onlyAlice(), testNow)
}

func TestEveryBitCounts(t *testing.T) {
	for range 20 {
		packet := mustSeal(t, openSSH(), alice())
		for bit := range 8 * len(packet) {
			want := ErrGate
			if bit >= 8*bodyAt {
				want = ErrMAC
			}
			refuse(t, want, flip(packet, bit), gateway(), onlyAlice(), testNow)
		}
	}
}

func flip(b []byte, bit int) []byte {
	c := append([]byte(nil), b...)
	c[bit/8] ^= 0x80 >> (bit % 8)
	return c
}

func TestOpenRefusesRevokedKeysOnlyAfterTheMAC(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	revoked := onlyAlice()
	c := revoked[aliceID]
	c.Client.Revoked = testNow.Add(-time.Hour)
	revoked[aliceID] = c
	err := refuse(t, ErrRevoked, packet, gateway(), revoked, testNow)
	if r, ok := errors.AsType[*Refused](err); !ok || r.Client.Name != "alice" {
		t.Errorf("the error does not say whose key: %#v", err)
	}
	refuse(t, ErrMAC, flip(packet, 8*bodyAt), gateway(), revoked, testNow)
}

func TestOpenRefusesRetiredKeys(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	clients := onlyAlice()
	c := clients[aliceID]
	for _, until := range []time.Duration{-time.Hour, 0} {
		c.Until = testNow.Add(until)
		clients[aliceID] = c
		refuse(t, ErrRetired, packet, gateway(), clients, testNow)
	}
	c.Until = testNow.Add(1)
	clients[aliceID] = c
	if _, err := Open(packet, gateway(), clients, testNow); err != nil {
		t.Errorf("a nanosecond before the end: %v", err)
	}
}

func TestOpenRefusesStalePackets(t *testing.T) {
	const w = 30 * time.Second
	for _, tt := range []struct {
		age  time.Duration
		want error
	}{
		{w + 1, ErrStale}, {w, nil}, {0, nil}, {-w, nil}, {-w - 1, ErrStale},
		{200 * 365 * 24 * time.Hour, ErrStale}, {-200 * 365 * 24 * time.Hour, ErrStale},
	} {
		t.Run(fmt.Sprint(tt.age), func(t *testing.T) {
			r := openSSH()
			r.Time = testNow.Add(-tt.age)
			packet := mustSeal(t, r, alice())
			if tt.want == nil {
				mustOpen(t, packet)
				return
			}
			err := refuse(t, ErrStale, packet, gateway(), onlyAlice(), testNow)
			if r, ok := errors.AsType[*Refused](err); !ok || !r.Time.Equal(testNow.Add(-tt.age)) || r.Client.Name != "alice" {
				t.Errorf("the error does not say who and when: %#v", err)
			}
		})
	}
}

// A difference between times that overflows a Duration must not wrap into the window.
func TestOpenRefusesTimesOutOfReach(t *testing.T) {
	r := openSSH()
	for _, stamp := range []time.Time{time.Unix(0, -1<<63), time.Unix(0, 1<<63-1)} {
		r.Time = stamp
		packet := mustSeal(t, r, alice())
		for _, now := range []time.Time{{}, time.Unix(0, -1<<63).Add(-time.Hour), time.Unix(0, 1<<63-1).Add(time.Hour),
			testNow} {
			refuse(t, ErrStale, packet, gateway(), onlyAlice(), now)
		}
	}
}

// TestOpenerAllocatesNothing: whether a packet opens or is refused, and for what.
func TestOpenerAllocatesNothing(t *testing.T) {
	packet := mustSeal(t, openSSH(), alice())
	var o Opener
	opens := func(name string, packet []byte, clients Clients, now time.Time, want error) {
		id := gateway()
		n := testing.AllocsPerRun(100, func() {
			if _, err := o.Open(packet, id, clients, now); !errors.Is(err, want) {
				t.Errorf("%s: got %v", name, err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
	opens("length", packet[:100], onlyAlice(), testNow, ErrLength)
	opens("gate", flip(packet, 0), onlyAlice(), testNow, ErrGate)
	opens("client", packet, clientMap{}, testNow, ErrClient)
	opens("mac", flip(packet, 8*bodyAt), onlyAlice(), testNow, ErrMAC)
	opens("stale", packet, onlyAlice(), testNow.Add(time.Hour), ErrStale)
	opens("good", packet, onlyAlice(), testNow, nil)
}

// TestClone: a clone outlives the packet after it.
func TestClone(t *testing.T) {
	var o Opener
	web := openSSH()
	web.Services = []service.Service{{Name: "web"}, {Name: "ssh"}}
	first := lab.Value(o.Open(mustSeal(t, openSSH(), alice()), gateway(), onlyAlice(), testNow))(t).Clone()
	lab.Value(o.Open(mustSeal(t, web, alice()), gateway(), onlyAlice(), testNow))(t)
	if !slices.Equal(first.Services, openSSH().Services) {
		t.Errorf("the clone has become %v", first.Services)
	}
}
