package spa

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"maps"
	"slices"
	"strings"

	"sallyport/keys"
)

// testProfile is the profile of most token vectors.
func testProfile() *keys.Profile {
	return &keys.Profile{
		Name: "gw", Client: "alice", Address: "gw.example.net", Source: "observed",
		KnockPorts: []uint16{62201, 443}, ServerID: testServer, Gate: testGate(0x40), ID: aliceID, Key: testKey(0x80),
		Receipts: true, Services: map[string][]string{"ssh": {"tcp/22"}, "mosh": {"udp/60000-60010", "tcp/22"}},
	}
}

// addTokens adds vectors of tokens: the text that gives a client all it needs to seal.
func addTokens(made map[string]string) {
	for name, p := range goodProfiles() {
		l := &lines{}
		l.add("# A profile and its token.\nverdict", "token-ok")
		l.addProfile(p)
		l.add("token", p.Token())
		made[name] = l.String()
	}
	add := func(name, about, token string) {
		l := &lines{}
		l.add("# "+about+"\nverdict", "token-wrong")
		if strings.Contains(token, "\n") {
			l.add("token bytes", []byte(token))
		} else {
			l.add("token", token)
		}
		made[name] = l.String()
	}
	add("token-wrong", "That of token.txt, but one character is another.",
		strings.Replace(testProfile().Token(), "Z", "z", 1))
	for name, text := range badTokenTexts() {
		add("token-wrong-"+name, "Its text has one fault: "+name+".", text)
	}
	for name, change := range badTokenFields() {
		f := goodFields()
		change(&f)
		add("token-wrong-"+name, "Its checksum is right, but its content has one fault: "+name+".", f.token())
	}
}

func goodProfiles() map[string]*keys.Profile {
	made := map[string]*keys.Profile{"token": testProfile()}
	add := func(name string, change func(p *keys.Profile)) {
		p := testProfile()
		change(p)
		made["token-"+name] = p
	}
	add("automatic", func(p *keys.Profile) { p.Source, p.Receipts, p.Services = "", false, nil })
	add("ipv6", func(p *keys.Profile) { p.Address, p.Source = "[2001:db8::1]:443", "2001:db8::2" })
	add("stun", func(p *keys.Profile) { p.Address, p.Source = "192.0.2.1:443", "stun:stun.example.net:3478" })
	return made
}

// badTokenTexts are misspellings and non-canonical spellings of a good token.
func badTokenTexts() map[string]string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	p := testProfile()
	for len(p.Token())%4 != 2 { // until 4 bits of the last character are unused
		p.Name += "w"
	}
	token := p.Token()
	cut := len(token) - 1
	last := strings.IndexByte(alphabet, token[cut])
	return map[string]string{
		"newline": token[:40] + "\n" + token[40:], "space": token[:40] + " " + token[40:],
		"padding": token + "==", "unused-bits": token[:cut] + alphabet[last+1:last+2],
		"cut": token[:cut], "prefix": "spa2" + token[4:], "prefix-upper": "SPA1" + token[4:],
	}
}

// tokenFields are the fields of a token, including values that no profile has.
type tokenFields struct {
	texts    []string // name, client, address, source
	knock    []uint16
	server   keys.ServerID
	id       uint64
	receipts byte
	services []string // name and ports each
	tail     []byte
}

func goodFields() tokenFields {
	return tokenFields{
		texts: []string{"gw", "alice", "gw.example.net", "observed"}, knock: []uint16{62201, 443}, server: testServer,
		id: uint64(aliceID), receipts: 1, services: []string{"mosh udp/60000-60010 tcp/22", "ssh tcp/22"},
	}
}

// token encodes the fields by section 3 of PROTOCOL.md, without checking them.
func (f tokenFields) token() string {
	var b []byte
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	for _, s := range f.texts {
		text(s)
	}
	b = append(b, byte(len(f.knock)))
	for _, port := range f.knock {
		b = binary.BigEndian.AppendUint16(b, port)
	}
	gate, key := testBytes(0x40), testBytes(0x80)
	b = append(append(b, f.server[:]...), gate[:]...)
	b = append(appendUint64(b, f.id), key[:]...)
	b = append(b, f.receipts, byte(len(f.services)))
	for _, service := range f.services {
		words := strings.Fields(service)
		text(words[0])
		b = append(b, byte(len(words)-1))
		for _, port := range words[1:] {
			text(port)
		}
	}
	b = append(b, f.tail...)
	sum := sha256.Sum256(append([]byte("sallyport 1 token"), b...))
	return "spa1" + base64.RawURLEncoding.EncodeToString(append(b, sum[:8]...))
}

func badTokenFields() map[string]func(f *tokenFields) {
	text := func(i int, s string) func(f *tokenFields) { return func(f *tokenFields) { f.texts[i] = s } }
	knock := func(ports ...uint16) func(f *tokenFields) { return func(f *tokenFields) { f.knock = ports } }
	services := func(s ...string) func(f *tokenFields) { return func(f *tokenFields) { f.services = s } }
	return map[string]func(f *tokenFields){
		"name-upper": text(0, "Gw"), "name-empty": text(0, ""), "client-underscore": text(1, "a_lice"),
		"address-empty": text(2, ""), "address-port-0": text(2, "gw.example.net:0"),
		"address-port-zeros": text(2, "gw.example.net:0443"),
		"address-mapped":     text(2, "::ffff:192.0.2.1"), "address-unspecified": text(2, "0.0.0.0"),
		"address-multicast": text(2, "ff02::1"),
		"address-digits":    text(2, "192.0.2"), "address-label-hyphen": text(2, "gw-.example.net"),
		"address-two-dots": text(2, "gw..net"),
		"address-long":     text(2, strings.Repeat("a.", 125)+"a"), "address-brackets": text(2, "[192.0.2.1]:443"),
		"source-auto": text(3, "auto"), "source-spelling": text(3, "2001:DB8::2"),
		"source-mapped": text(3, "::ffff:192.0.2.2"),
		"source-host":   text(3, "alice.example.net"), "source-stun-empty": text(3, "stun:"),
		"knock-none": knock(), "knock-33": knock(manyNumbers(33)...), "knock-0": knock(0), "knock-twice": knock(443, 443),
		"server-id-0":    func(f *tokenFields) { f.server = keys.ServerID{} },
		"client-id-0":    func(f *tokenFields) { f.id = 0 },
		"receipts-2":     func(f *tokenFields) { f.receipts = 2 },
		"trailing":       func(f *tokenFields) { f.tail = []byte{0} },
		"services-order": services("ssh tcp/22", "mosh tcp/22"), "service-twice": services("ssh tcp/22", "ssh tcp/23"),
		"service-name": services("SSH tcp/22"), "service-no-ports": services("ssh"),
		"port-twice":    services("ssh tcp/22 tcp/22"),
		"port-protocol": services("ssh sctp/22"), "port-upper": services("ssh TCP/22"), "port-0": services("ssh tcp/0"),
		"port-zeros": services("ssh tcp/022"),
		"port-65536": services("ssh tcp/65536"), "range-of-one": services("ssh tcp/22-22"),
		"range-reversed": services("ssh tcp/23-22"),
	}
}

func manyNumbers(n int) []uint16 {
	var numbers []uint16
	for i := range n {
		numbers = append(numbers, uint16(1+i))
	}
	return numbers
}

// addProfile writes a service as its name and its ports.
func (l *lines) addProfile(p *keys.Profile) {
	l.add("name", p.Name)
	l.add("client", p.Client)
	l.add("address", p.Address)
	l.add("source", p.Source)
	for _, port := range p.KnockPorts {
		l.add("knock port", port)
	}
	l.add("server id", p.ServerID[:])
	l.add("gate key", fromBase64(p.Gate.Reveal()))
	l.add("client id", p.ID)
	l.add("client key", fromBase64(p.Key.Reveal()))
	l.add("receipts", p.Receipts)
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		l.add("service", name+" "+strings.Join(p.Services[name], " "))
	}
}
