package spa

import (
	"bytes"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/keys/service"
	"sallyport/spa/lab"
)

func grantedReceipt() Receipt {
	return Receipt{
		Status: Granted,
		Time:   testNow.Add(time.Second),
		Source: netip.MustParseAddr("192.0.2.2"),
		Services: []Granting{
			{For: 30 * time.Second, Ports: []service.Ports{{Proto: service.TCP, Low: 22, High: 22}}},
			{For: time.Minute, Ports: []service.Ports{{Proto: service.TCP, Low: 60000, High: 60010},
				{Proto: service.UDP, Low: 53, High: 53}}, More: true},
		},
	}
}

func deniedReceipt() Receipt {
	return Receipt{Status: ReasonNotAllowed, Time: testNow, Source: netip.MustParseAddr("2001:db8::2")}
}

func mustSealReceipt(t testing.TB, r Receipt, k Knock) []byte {
	t.Helper()
	b, err := SealReceipt(r, &k, testServer)
	if err != nil {
		t.Fatalf("SealReceipt: %v", err)
	}
	return b
}

func TestOpenReceiptReturnsWhatWasSealed(t *testing.T) {
	closed := Receipt{Status: Closed, Time: testNow}
	unknown := deniedReceipt()
	unknown.Status = 255
	early := deniedReceipt()
	early.Status, early.Again = ReasonTooEarly, testNow.Add(time.Minute)
	for name, want := range map[string]Receipt{
		"granted": grantedReceipt(), "denied": deniedReceipt(), "closed": closed, "unknown reason": unknown,
		"too early": early,
	} {
		t.Run(name, func(t *testing.T) {
			request := mustSeal(t, openSSH(), alice())
			packet := mustSealReceipt(t, want, mustOpen(t, request))
			if len(packet) != len(request) {
				t.Errorf("got %d bytes for a request of %d", len(packet), len(request))
			}
			got, err := OpenReceipt(packet, request, alice())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, %v; want %+v", got, err, want)
			}
		})
	}
}

// refuseReceipt checks that the client keeps waiting.
func refuseReceipt(t *testing.T, packet, request []byte, s Sender) {
	t.Helper()
	r, err := OpenReceipt(packet, request, s)
	if err != ErrReceipt || !reflect.DeepEqual(r, Receipt{}) {
		t.Errorf("got %+v, %v; want nothing and ErrReceipt", r, err)
	}
}

// sameLength seals until the packet has the length of another.
func sameLength(t *testing.T, n int, r Request) []byte {
	for {
		if packet := mustSeal(t, r, alice()); len(packet) == n {
			return packet
		}
	}
}

func TestOpenReceiptRefuses(t *testing.T) {
	request := mustSeal(t, openSSH(), alice())
	knock := mustOpen(t, request)
	packet := mustSealReceipt(t, grantedReceipt(), knock)

	t.Run("of another request", func(t *testing.T) {
		refuseReceipt(t, packet, sameLength(t, len(request), openSSH()), alice())
	})
	t.Run("of another key", func(t *testing.T) {
		other := alice()
		other.Key = testKey(0x90)
		refuseReceipt(t, packet, request, other)
	})
	t.Run("without a key", func(t *testing.T) {
		refuseReceipt(t, packet, request, Sender{Server: testServer})
	})
	t.Run("of another server", func(t *testing.T) {
		other := alice()
		other.Server[0] ^= 1
		refuseReceipt(t, packet, request, other)
	})
	t.Run("the request itself", func(t *testing.T) { refuseReceipt(t, request, request, alice()) })
	t.Run("of every length", func(t *testing.T) {
		for n := range 300 {
			b := make([]byte, n)
			copy(b, packet)
			if n != len(packet) {
				refuseReceipt(t, b, request, alice())
			}
		}
	})
	t.Run("with every bit flipped", func(t *testing.T) {
		for bit := range 8 * len(packet) {
			refuseReceipt(t, flip(packet, bit), request, alice())
		}
	})
}

// A receipt of another length than the request's is refused even if it authenticates: no server of this protocol sends
// it.
func TestOpenReceiptRefusesAnotherLength(t *testing.T) {
	request := mustSeal(t, openSSH(), alice())
	knock := mustOpen(t, request)
	plain, _ := deniedReceipt().AppendBinary(nil)
	for n := MinLen; n <= MaxLen; n++ {
		if n == len(request) {
			continue
		}
		knock.Len = n
		refuseReceipt(t, sealReceipt(plain, &knock, testServer), request, alice())
	}
	for _, n := range []int{0, MinLen - 1, MaxLen + 1} {
		refuseReceipt(t, make([]byte, n), make([]byte, n), alice())
	}
}

func TestARequestIsNoReceiptAndNoReceiptARequest(t *testing.T) {
	request := mustSeal(t, openSSH(), alice())
	receipt := mustSealReceipt(t, grantedReceipt(), mustOpen(t, request))
	refuse(t, ErrGate, receipt, gateway(), onlyAlice(), testNow)
}

// badReceipts are plaintexts that our server would never seal. Each has one fault.
func badReceipts() map[string][]byte {
	set := func(at int, b ...byte) []byte {
		p, _ := grantedReceipt().AppendBinary(nil)
		copy(p[at:], b)
		return p
	}
	letIn := func(at int, b ...byte) []byte {
		r := grantedReceipt()
		r.LetIn = netip.MustParsePrefix("198.51.100.0/24")
		r.Source = r.LetIn.Addr()
		p, _ := r.AppendBinary(nil)
		copy(p[at:], b)
		return p
	}
	return map[string][]byte{
		"let-in-refused":       letIn(1, byte(ReasonNetwork), 0x80),
		"let-in-closed":        letIn(1, byte(Closed)),
		"let-in-everything":    letIn(27, 0),
		"let-in-host-bits":     letIn(26, 7),
		"let-in-long":          letIn(27, 33),
		"let-in-eight":         append(letIn(2, 0x88), make([]byte, 5*6)...),
		"version":              set(0, 2),
		"status-0":             set(1, 0),
		"status-3":             set(1, 3),
		"status-15":            set(1, 15),
		"refusal-with-service": set(1, byte(ReasonFailed)),
		"granted-nothing":      set(2, 0),
		"count-9":              append(set(2, 9), make([]byte, 5*7)...),
		"source-unspecified-4": set(11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0),
		"protocol":             set(32, 1),
		"port-0":               set(33, 0, 0),
		"range-reversed":       set(33, 0, 23),
		"ports-truncated":      set(31, 0x7f),
	}
}

func TestReceiptRefusesMalformed(t *testing.T) {
	for name, plain := range badReceipts() {
		t.Run(name, func(t *testing.T) {
			if r, err := ParseReceipt(plain); err != errReceiptFormat || !reflect.DeepEqual(r, Receipt{}) {
				t.Errorf("ParseReceipt: got %+v, %v", r, err)
			}
			request := mustSeal(t, openSSH(), alice())
			knock := mustOpen(t, request)
			refuseReceipt(t, sealReceipt(plain, &knock, testServer), request, alice())
		})
	}
}

func TestParseReceiptRefusesEveryOtherLength(t *testing.T) {
	plain := lab.Value(grantedReceipt().AppendBinary(nil))(t)
	for n := range plain {
		if _, err := ParseReceipt(plain[:n]); err == nil {
			t.Errorf("the first %d of %d bytes are a receipt", n, len(plain))
		}
	}
	if _, err := ParseReceipt(append(plain, 0)); err == nil {
		t.Error("a trailing byte is accepted")
	}
	// 17 ranges of one service are well-formed except that they take 117 bytes.
	long := Receipt{Status: Granted, Time: testNow, Services: []Granting{{}}}
	b, _ := long.AppendBinary(nil)
	b[len(b)-1] = 17
	if _, err := ParseReceipt(append(b, bytes.Repeat([]byte{6, 0, 1, 0, 1}, 17)...)); err == nil {
		t.Error("a receipt that fits no packet is accepted")
	}
}

func manyPorts(n int) []service.Ports {
	var p []service.Ports
	for i := range n {
		p = append(p, service.Ports{Proto: service.TCP, Low: uint16(1 + i), High: uint16(1 + i)})
	}
	return p
}

// TestMarks: whether programs are started, and whether one connection gets in, is told with all services that a receipt
// can list, and what is no such mark is padding.
func TestMarks(t *testing.T) {
	for bits := range 1 << 16 {
		r := Receipt{Status: Granted, Time: testNow}
		for i := range 8 {
			r.Services = append(r.Services, Granting{For: time.Second, Ports: manyPorts(3)[:1], Started: bits>>i&1 == 1,
				Once: bits>>(8+i)&1 == 1})
		}
		b, err := r.AppendBinary(nil)
		if err != nil || len(b) > receiptMax {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		for i, g := range lab.Value(ParseReceipt(b))(t).Services {
			if g.Started != r.Services[i].Started || g.Once != r.Services[i].Once {
				t.Errorf("%08b: service %d says %v", bits, i, g.Started)
			}
		}
	}
	one := Receipt{Status: Granted, Time: testNow, Services: []Granting{{For: time.Second}}}
	plain := lab.Value(one.AppendBinary(nil))(t)
	for _, mark := range []string{"runs", "runs\x00", "runs\x02", "rung\x01", "runs\x01\x00", "once", "once\x02",
		"once\x00", "once\x01\x00", "once\x01runs\x01", "runs\x01runs\x01", "once\x01once\x01"} {
		if r, err := ParseReceipt(append(slices.Clone(plain), mark...)); err == nil {
			t.Errorf("%q: got %+v", mark, r)
		}
	}
	one.Status, one.Services[0].Started = Closed, true
	if _, err := one.AppendBinary(nil); err == nil {
		t.Error("a close has started a program")
	}
}

func TestReceiptKeepsWhatFits(t *testing.T) {
	for name, tt := range map[string]struct {
		have, want []int
		more       []bool
	}{
		"all":          {[]int{16}, []int{16}, []bool{false}},
		"one too many": {[]int{17}, []int{16}, []bool{true}},
		"hundreds":     {[]int{300}, []int{16}, []bool{true}},
		"first come":   {[]int{20, 20}, []int{14, 1}, []bool{true, true}},
		"what is left": {[]int{3, 20, 1}, []int{3, 10, 1}, []bool{false, true, false}},
		"eight": {[]int{9, 9, 9, 9, 9, 9, 9, 9}, []int{2, 1, 1, 1, 1, 1, 1, 1},
			[]bool{true, true, true, true, true, true, true, true}},
		"nothing is nothing": {[]int{0, 20}, []int{0, 15}, []bool{false, true}},
	} {
		t.Run(name, func(t *testing.T) {
			r := Receipt{Status: Granted, Time: testNow}
			for _, n := range tt.have {
				r.Services = append(r.Services, Granting{For: time.Second, Ports: manyPorts(n)})
			}
			b, err := r.AppendBinary(nil)
			if err != nil || len(b) > 112 {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
			got := lab.Value(ParseReceipt(b))(t)
			for i, g := range got.Services {
				if len(g.Ports) != tt.want[i] || g.More != tt.more[i] {
					t.Errorf("service %d: got %d ranges, more %v; want %d, %v", i, len(g.Ports), g.More, tt.want[i], tt.more[i])
				}
			}
		})
	}
}

func TestReceiptRoundsDurations(t *testing.T) {
	for have, want := range map[time.Duration]time.Duration{
		-time.Second: 0, time.Second + 999: time.Second, maxFor + time.Hour: maxFor,
	} {
		b := lab.Value(Receipt{Status: Granted, Time: testNow, Services: []Granting{{For: have}}}.AppendBinary(nil))(t)
		if r, err := ParseReceipt(b); err != nil || r.Services[0].For != want {
			t.Errorf("%v: got %+v, %v; want %v", have, r, err, want)
		}
	}
}

func TestReceiptTellsNoZone(t *testing.T) {
	r := deniedReceipt()
	r.Source = netip.MustParseAddr("fe80::1%eth0")
	b := lab.Value(r.AppendBinary(nil))(t)
	if got, err := ParseReceipt(b); err != nil || got.Source != r.Source.WithZone("") {
		t.Errorf("got %v, %v", got.Source, err)
	}
}

func TestSealReceiptRefuses(t *testing.T) {
	knock := mustOpen(t, mustSeal(t, openSSH(), alice()))
	for name, change := range map[string]func(r *Receipt, k *Knock){
		"status":      func(r *Receipt, _ *Knock) { r.Status = 3 },
		"no time":     func(r *Receipt, _ *Knock) { r.Time = time.Time{} },
		"unspecified": func(r *Receipt, _ *Knock) { r.Source = netip.IPv6Unspecified() },
		"mapped":      func(r *Receipt, _ *Knock) { r.Source = netip.MustParseAddr("::ffff:0.0.0.0") },
		"nothing":     func(r *Receipt, _ *Knock) { r.Services = nil },
		"nine":        func(r *Receipt, _ *Knock) { r.Services = make([]Granting, 9) },
		"denied some": func(r *Receipt, _ *Knock) { r.Status = ReasonFailed },
		"bad port":    func(r *Receipt, _ *Knock) { r.Services[0].Ports[0].Low = 0 },
		"no knock":    func(_ *Receipt, k *Knock) { *k = Knock{} },
		"no key":      func(_ *Receipt, k *Knock) { k.Key = Sender{}.Key },
		"short":       func(_ *Receipt, k *Knock) { k.Len = MinLen - 1 },
		"long":        func(_ *Receipt, k *Knock) { k.Len = MaxLen + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r, k := grantedReceipt(), knock
			change(&r, &k)
			if b, err := SealReceipt(r, &k, testServer); err == nil || b != nil {
				t.Errorf("got %d bytes and error %v, want an error", len(b), err)
			}
		})
	}
}

func TestStatusWords(t *testing.T) {
	seen := map[string]Status{}
	for s := range 256 {
		words := Status(s).String()
		if prior, ok := seen[words]; ok {
			t.Errorf("%d and %d are both %q", prior, s, words)
		}
		seen[words] = Status(s)
		named := !strings.HasPrefix(words, "status ")
		if want := s == 1 || s == 2 || 16 <= s && s <= 31; named != want {
			t.Errorf("%d is %q", s, words)
		}
	}
}

func FuzzParseReceipt(f *testing.F) {
	early := deniedReceipt()
	early.Status = ReasonTooEarly
	for _, r := range []Receipt{grantedReceipt(), deniedReceipt(), early} {
		b, _ := r.AppendBinary(nil)
		f.Add(b)
	}
	for _, b := range badReceipts() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReceipt(b)
		if err != nil {
			if !reflect.DeepEqual(r, Receipt{}) {
				t.Errorf("an error came with a receipt: %+v", r)
			}
			return
		}
		if back, err := r.AppendBinary(nil); err != nil || !bytes.Equal(back, b) {
			t.Errorf("%x prints back as %x, %v", b, back, err)
		}
	})
}
