package spa

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/spa/lab"
)

// An answer is one vector of a receipt: an answer to alice's request, and her verdict on it.
type answer struct {
	about   string
	verdict string

	request Request
	receipt Receipt
	plain   []byte // replaces receipt's encoding
	server  Sender // has the keys that seal it
	length  int    // of the receipt
	twin    bool   // answers another request of the same length
	mend    func(receipt, request []byte) []byte
}

func addReceipts(t *testing.T, made map[string]string) {
	add := func(name, verdict, about string, change func(a *answer)) {
		a := answer{about: about, verdict: verdict, request: openSSH(), receipt: grantedReceipt(),
			server: alice(), length: 200}
		change(&a)
		made[name] = a.text(t, name)
	}
	addGoodReceipts(add)
	addMismatches(add)
	addWrongReceipts(add)
	for name, plain := range badReceipts() {
		add("receipt-malformed-"+name, "receipt-wrong", "Well sealed, but the receipt in it is not well-formed: "+name+".",
			func(a *answer) { a.plain = plain })
	}
}

type addAnswerFunc func(name, verdict, about string, change func(a *answer))

func addGoodReceipts(add addAnswerFunc) {
	add("receipt-granted", "receipt-ok", "Two services granted, the second has more ports than are told.",
		func(*answer) {})
	add("receipt-closed", "receipt-ok", "A close was done.", func(a *answer) {
		a.request.Type, a.request.For = TypeClose, 0
		a.receipt = Receipt{Status: Closed, Time: testNow, Source: grantedReceipt().Source}
	})
	add("receipt-no-source", "receipt-ok", "A receipt that tells no address.",
		func(a *answer) { a.receipt.Source = netip.Addr{} })
	add("receipt-over", "receipt-ok", "A grant that was made, and is over.", func(a *answer) {
		a.receipt.Services = []Granting{{Ports: manyPorts(1)}, {Ports: manyPorts(1)}}
	})
	add("receipt-no-ranges", "receipt-ok", "No ranges are told, of the second service there are some.", func(a *answer) {
		a.receipt.Services = []Granting{{For: 30 * time.Second}, {For: 30 * time.Second, More: true}}
	})
	add("receipt-full", "receipt-ok", "A receipt of 112 bytes: 16 ranges.", func(a *answer) {
		a.request.Services = a.request.Services[:1]
		a.receipt.Services = []Granting{{Ports: manyPorts(16)}}
	})
	add("receipt-started", "receipt-ok", "Of two services, the second has no ports, and its program is started.",
		func(a *answer) {
			a.receipt.Services = []Granting{{For: 30 * time.Second, Ports: manyPorts(1)}, {For: time.Minute, Started: true}}
		})
	add("receipt-let-in", "receipt-ok", "A network was let in.", func(a *answer) {
		a.request.LetIn = netip.MustParsePrefix("198.51.100.0/24")
		a.receipt.LetIn, a.receipt.Source = a.request.LetIn, a.request.LetIn.Addr()
	})
	add("receipt-let-in-full", "receipt-ok", "An address was let in to seven services, the last of which runs a program.",
		func(a *answer) {
			a.request.LetIn, a.request.Services = netip.MustParsePrefix("2001:db8::7/128"), ports(1, 7)
			a.receipt.LetIn, a.receipt.Source, a.receipt.Services = a.request.LetIn, a.request.LetIn.Addr(), nil
			for range 7 {
				a.receipt.Services = append(a.receipt.Services, Granting{For: time.Minute, Ports: manyPorts(1)})
			}
			a.receipt.Services[6].Started = true
		})
	add("receipt-once", "receipt-ok", "Of two services, the first admits one connection.", func(a *answer) {
		a.receipt.Services = []Granting{{For: 30 * time.Second, Ports: manyPorts(1), Once: true}, {For: time.Minute}}
	})
	add("receipt-started-once", "receipt-ok", "Two services that start programs, the second admits one connection.",
		func(a *answer) {
			a.receipt.Services = []Granting{{For: time.Second, Started: true},
				{For: time.Minute, Ports: manyPorts(1), Started: true, Once: true}}
		})
	addDenied(add)
}

func addDenied(add addAnswerFunc) {
	for _, s := range []Status{ReasonExpired, ReasonNoService, ReasonNotAllowed, ReasonSourceRequired, ReasonTooManyGrants,
		ReasonTooManyPerHour, ReasonSuperseded, ReasonIDReused, ReasonFailed, ReasonNotNow,
		ReasonTooManyPorts, ReasonOtherFamily, ReasonNoProgram, ReasonNoUses, ReasonNetwork} {
		add("receipt-denied-"+strconv.Itoa(int(s)), "receipt-ok", "Refused: "+s.String()+".", func(a *answer) {
			a.receipt = deniedReceipt()
			a.receipt.Status = s
		})
	}
	add("receipt-denied-28", "receipt-ok", "Refused: "+ReasonTooEarly.String()+". It says when to ask again.",
		func(a *answer) {
			a.receipt = deniedReceipt()
			a.receipt.Status, a.receipt.Again = ReasonTooEarly, testNow.Add(24*time.Second)
		})
	add("receipt-denied-255", "receipt-ok", "Refused for a reason that is not known yet.", func(a *answer) {
		a.receipt = deniedReceipt()
		a.receipt.Status = 255
	})
}

// addMismatches adds receipts that are authentic, but do not answer the request.
func addMismatches(add addAnswerFunc) {
	add("receipt-mismatch-fewer", "receipt-ok", "It does not match the request: one service granted of two.",
		func(a *answer) {
			a.receipt.Services = a.receipt.Services[:1]
		})
	add("receipt-mismatch-more", "receipt-ok", "It does not match the request: three services granted of two.",
		func(a *answer) {
			a.receipt.Services = []Granting{{Ports: manyPorts(1)}, {Ports: manyPorts(1)}, {Ports: manyPorts(1)}}
		})
	add("receipt-mismatch-closed", "receipt-ok", "It does not match the request: an open is answered as a close.",
		func(a *answer) {
			a.receipt = Receipt{Status: Closed, Time: testNow, Source: grantedReceipt().Source}
		})
	add("receipt-mismatch-granted", "receipt-ok", "It does not match the request: a close is answered as a grant.",
		func(a *answer) {
			a.request.Type, a.request.For = TypeClose, 0
		})
}

func addWrongReceipts(add addAnswerFunc) {
	add("receipt-wrong-request", "receipt-wrong", "It answers another packet of the same command.",
		func(a *answer) { a.twin = true })
	add("receipt-wrong-key", "receipt-wrong", "Sealed with another client's key.",
		func(a *answer) { a.server.Key = testKey(0x90) })
	add("receipt-wrong-server", "receipt-wrong", "Sealed by another server with the same keys.",
		func(a *answer) { a.server.Server[0] ^= 1 })
	add("receipt-wrong-length", "receipt-wrong", "Not of the request's length.", func(a *answer) { a.length = 199 })
	add("receipt-echo", "receipt-wrong", "The request itself comes back.", func(a *answer) {
		a.mend = func(_, request []byte) []byte { return request }
	})
	add("receipt-empty", "receipt-wrong", "An empty datagram.", func(a *answer) {
		a.mend = func(_, _ []byte) []byte { return nil }
	})
	for name, byteAt := range map[string]int{"nonce": 0, "body": receiptBodyAt, "padding": 200 - macLen - 1, "mac": 199} {
		add("receipt-flipped-"+name, "receipt-wrong", "A bit flipped: "+name+".", func(a *answer) {
			a.mend = func(receipt, _ []byte) []byte { return flip(receipt, 8*byteAt) }
		})
	}
}

func (a answer) text(t *testing.T, name string) string {
	plain := a.plain
	if plain == nil {
		b := lab.Value(a.receipt.AppendBinary(nil))(t)
		plain = b
	}
	seedRandom(t, name)
	request := seal(a.request.append(nil), alice(), 200)
	knock := mustOpen(t, request)
	if a.twin {
		knock = mustOpen(t, seal(openSSH().append(nil), alice(), 200))
	}
	knock.Key, knock.Len = a.server.Key, a.length
	receipt := sealReceipt(plain, &knock, a.server.Server)
	if a.mend != nil {
		receipt = a.mend(receipt, request)
	}

	l := &lines{}
	l.add("# "+a.about+"\nverdict", a.verdict)
	l.addKeys([]keys.GateKey{testGate(0x40)})
	if a.verdict == "receipt-ok" {
		l.addReceipt(a.receipt)
	}
	l.add("plaintext", plain)
	l.add("request", request)
	l.add("receipt", receipt)
	return l.String()
}

// addReceipt writes a service as its milliseconds, its ranges and perhaps "more" and "started".
func (l *lines) addReceipt(r Receipt) {
	l.add("status", int(r.Status))
	l.add("time", r.Time.UnixNano())
	if !r.Again.IsZero() {
		l.add("again", r.Again.UnixNano())
	}
	l.addAddr("source", r.Source)
	if r.LetIn.IsValid() {
		l.add("let in", r.LetIn)
	}
	for _, g := range r.Services {
		text := strconv.FormatInt(g.For.Milliseconds(), 10)
		for _, p := range g.Ports {
			text += " " + p.String()
		}
		if g.More {
			text += " more"
		}
		if g.Started {
			text += " started"
		}
		if g.Once {
			text += " once"
		}
		l.add("service", text)
	}
}
