package spa

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sallyport/keys/service"
)

// badRequests are plaintexts that our client would never seal. Each has one fault.
func badRequests() map[string][]byte {
	good := openSSH()
	encode := func(change func(r *Request)) []byte {
		r := good
		change(&r)
		return r.append(nil)
	}
	set := func(at int, b ...byte) []byte {
		p := good.append(nil)
		copy(p[at:], b)
		return p
	}
	services := func(count byte, b ...byte) []byte {
		p := append(good.append(nil)[:fixedLen], b...)
		p[3] = count
		return p
	}
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	continued := func(p []byte) []byte {
		p[2] = continuedBit
		return append(p, 0, 0, 0, 0, 0, 0, 0)
	}
	bad := badNetworks()
	maps.Copy(bad, map[string][]byte{
		"version-0":            set(0, 0),
		"version-2":            set(0, 2),
		"type-0":               set(1, 0),
		"type-3":               set(1, 3),
		"flags":                set(2, 4),
		"count-0":              set(3, 0),
		"count-9":              services(9, []byte("\x01a\x01b\x01c\x01d\x01e\x01f\x01g\x01h\x01i")...),
		"close-with-for":       encode(func(r *Request) { r.Type = TypeClose }),
		"source-unspecified-4": set(32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0),
		"duplicate-name":       services(2, 1, 'a', 1, 'a'),
		"duplicate-port":       services(2, 0x86, 0, 22, 0x86, 0, 22),
		"name-empty":           services(1, 0),
		"name-33":              services(1, name(strings.Repeat("a", 33))...),
		"name-upper":           services(1, name("SSH")...),
		"name-first-hyphen":    services(1, name("-ssh")...),
		"name-nul":             services(1, name("ss\x00")...),
		"port-0":               services(1, 0x86, 0, 0),
		"port-protocol":        services(1, 0x81, 0, 22),
		"first-not-before":     encode(func(r *Request) { r.First = r.Time }),
		"first-truncated": continued(services(2, append(name(strings.Repeat("a", 31)),
			name(strings.Repeat("b", 8))...)...)),
		"truncated-name": services(2, append(name(strings.Repeat("a", 31)), name(strings.Repeat("b", 16))...)...),
		"truncated-port": services(3, append(append(name(strings.Repeat("a", 31)), name(strings.Repeat("b", 13))...), 0x86,
			0)...),
		"truncated-count": services(3, append(name(strings.Repeat("a", 31)), name(strings.Repeat("b", 15))...)...),
	})
	return bad
}

// badNetworks are plaintexts of requests to let in what cannot be let in. Each has one fault.
func badNetworks() map[string][]byte {
	good := openSSH()
	n := len(good.append(nil))
	letIn := func(address string, bits byte) []byte {
		p := good.append(nil)
		p[2] = letInBit
		return append(appendAddr(p, netip.MustParseAddr(address)), bits)
	}
	many := openSSH()
	many.Services, many.LetIn = ports(1, 8), netip.MustParsePrefix("198.51.100.0/24")
	return map[string][]byte{
		"let-in-everything":   letIn("0.0.0.0", 0),
		"let-in-everything-6": letIn("::", 0),
		"let-in-wide":         letIn("128.0.0.0", 7),
		"let-in-wide-6":       letIn("2001::", 31),
		"let-in-no-network":   letIn("2001:db8::", 80),
		"let-in-long":         letIn("198.51.100.7", 33),
		"let-in-long-6":       letIn("2001:db8::7", 129),
		"let-in-host-bits":    letIn("198.51.100.7", 24),
		"let-in-host-bits-6":  letIn("2001:db8::7", 64),
		"let-in-loopback":     letIn("127.0.0.1", 32),
		"let-in-loopback-6":   letIn("::1", 128),
		"let-in-link-local":   letIn("169.254.1.0", 24),
		"let-in-link-local-6": letIn("fe80::", 64),
		"let-in-multicast":    letIn("224.0.0.0", 8),
		"let-in-multicast-6":  letIn("ff02::1", 128),
		"let-in-mapped":       letIn("198.51.100.7", 128),
		"let-in-holds-mapped": letIn("::", 64),
		"let-in-truncated":    letIn("198.51.100.0", 24)[:n+16],
		"let-in-eight":        many.append(nil),
	}
}

func TestOpenRefusesMalformedRequests(t *testing.T) {
	for name, plain := range badRequests() {
		t.Run(name, func(t *testing.T) {
			// Padding that happens to look like a continuation must not be parsed as part of the request.
			plain = append(plain, bytes.Repeat([]byte{'a'}, 32)...)
			packet := seal(plain[:min(len(plain), requestMax)], alice(), MinLen)
			err := refuse(t, ErrMalformed, packet, gateway(), onlyAlice(), testNow)
			if r, ok := errors.AsType[*Refused](err); !ok || r.Client.Name != "alice" {
				t.Errorf("the error does not say whose packet: %#v", err)
			}
		})
	}
}

func TestMalformedIsToldBeforeStale(t *testing.T) {
	packet := seal(badRequests()["flags"], alice(), MinLen)
	refuse(t, ErrMalformed, packet, gateway(), onlyAlice(), testNow.Add(time.Hour))
}

func TestParseRequestRefusesEveryTruncation(t *testing.T) {
	plain := openSSH().append(nil)
	for n := range plain {
		if _, err := parseRequest(plain[:n], nil, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("the first %d of %d bytes: got %v, want ErrMalformed", n, len(plain), err)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	for name, change := range map[string]func(r *Request, s *Sender){
		"type":             func(r *Request, _ *Sender) { r.Type = 3 },
		"first not before": func(r *Request, _ *Sender) { r.First = r.Time },
		"far first":        func(r *Request, _ *Sender) { r.First = time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC) },
		"first too long": func(r *Request, _ *Sender) {
			r.First, r.Services = r.Time.Add(-time.Minute),
				[]service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 7)}}
		},
		"everybody":  func(r *Request, _ *Sender) { r.LetIn = netip.MustParsePrefix("0.0.0.0/0") },
		"host bits":  func(r *Request, _ *Sender) { r.LetIn = netip.MustParsePrefix("198.51.100.7/24") },
		"mapped":     func(r *Request, _ *Sender) { r.LetIn = netip.MustParsePrefix("::ffff:198.51.100.7/128") },
		"no network": func(r *Request, _ *Sender) { r.LetIn = netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 60) },
		"eight let in": func(r *Request, _ *Sender) {
			r.Services, r.LetIn = ports(1, 8), netip.MustParsePrefix("198.51.100.0/24")
		},
		"no time":            func(r *Request, _ *Sender) { r.Time = time.Time{} },
		"far time":           func(r *Request, _ *Sender) { r.Time = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) },
		"close with for":     func(r *Request, _ *Sender) { r.Type = TypeClose },
		"negative for":       func(r *Request, _ *Sender) { r.For = -time.Second },
		"long for":           func(r *Request, _ *Sender) { r.For = maxFor + time.Millisecond },
		"fine for":           func(r *Request, _ *Sender) { r.For = time.Second + 1 },
		"unspecified":        func(r *Request, _ *Sender) { r.Source = netip.IPv4Unspecified() },
		"unspecified 6":      func(r *Request, _ *Sender) { r.Source = netip.IPv6Unspecified() },
		"unspecified mapped": func(r *Request, _ *Sender) { r.Source = netip.MustParseAddr("::ffff:0.0.0.0") },
		"zone":               func(r *Request, _ *Sender) { r.Source = netip.MustParseAddr("fe80::1%eth0") },
		"no services":        func(r *Request, _ *Sender) { r.Services = nil },
		"nine services":      func(r *Request, _ *Sender) { r.Services = ports(1, 9) },
		"twice":              func(r *Request, _ *Sender) { r.Services = append(ports(1, 2), ports(2, 2)...) },
		"zero service":       func(r *Request, _ *Sender) { r.Services = []service.Service{{}} },
		"port 0":             func(r *Request, _ *Sender) { r.Services = []service.Service{{Proto: service.TCP}} },
		"protocol":           func(r *Request, _ *Sender) { r.Services = []service.Service{{Proto: 1, Port: 1}} },
		"bad name":           func(r *Request, _ *Sender) { r.Services = []service.Service{{Name: "SSH"}} },
		"name and port":      func(r *Request, _ *Sender) { r.Services = []service.Service{{Name: "ssh", Port: 22}} },
		"name and proto": func(r *Request, _ *Sender) {
			r.Services = []service.Service{{Name: "ssh", Proto: service.TCP}}
		},
		"long names":    func(r *Request, _ *Sender) { r.Services = longNames() },
		"no client key": func(_ *Request, s *Sender) { s.Key = Sender{}.Key },
		"no gate key":   func(_ *Request, s *Sender) { s.Gate = Sender{}.Gate },
	} {
		t.Run(name, func(t *testing.T) {
			r, s := openSSH(), alice()
			change(&r, &s)
			if packet, err := Seal(r, s); err == nil || packet != nil {
				t.Errorf("got %d bytes and error %v, want an error", len(packet), err)
			}
		})
	}
}

func ports(from, to uint16) []service.Service {
	var s []service.Service
	for p := from; p <= to; p++ {
		s = append(s, service.Service{Proto: service.TCP, Port: p})
	}
	return s
}

// longNames are one byte too long.
func longNames() []service.Service {
	return []service.Service{{Name: strings.Repeat("a", 32)}, {Name: strings.Repeat("b", 15)}}
}

func TestDigest(t *testing.T) {
	want := openSSH().Digest()
	same := openSSH()
	same.ID, same.Time = NewRequestID(), testNow.Add(time.Second)
	if same.Digest() != want {
		t.Error("a retry has another digest")
	}
	same.Time = time.Time{}
	if same.Digest() != want {
		t.Error("the digest depends on the time")
	}
	for name, change := range map[string]func(r *Request){
		"type":     func(r *Request) { r.Type = TypeClose },
		"for":      func(r *Request) { r.For += time.Millisecond },
		"source":   func(r *Request) { r.Source = netip.Addr{} },
		"services": func(r *Request) { r.Services = r.Services[:1] },
		"order":    func(r *Request) { r.Services = []service.Service{r.Services[1], r.Services[0]} },
	} {
		t.Run(name, func(t *testing.T) {
			r := openSSH()
			change(&r)
			if r.Digest() == want {
				t.Error("another request has the same digest")
			}
		})
	}
}

func TestNewRequestIDsDiffer(t *testing.T) {
	one, other := NewRequestID(), NewRequestID()
	if one == other {
		t.Error("two ids are the same")
	}
}

func TestStringsOfTheWire(t *testing.T) {
	for got, want := range map[string]string{
		TypeOpen.String(): "open", TypeClose.String(): "close", Type(9).String(): "type-9",
		RequestID{0xab}.String(): "ab" + strings.Repeat("0", 30),
		Nonce{0xcd}.String():     "cd" + strings.Repeat("0", 46),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestServiceSize: a service takes as many bytes of a request as are counted for it.
func TestServiceSize(t *testing.T) {
	for _, s := range []service.Service{{Name: "a"}, {Name: strings.Repeat("a", 32)}, {Proto: service.TCP, Port: 22},
		{Proto: service.UDP, Port: 65535}} {
		if got := len(appendService(nil, s)); got != serviceSize(s) {
			t.Errorf("%v: %d bytes, counted as %d", s, got, serviceSize(s))
		}
	}
}
