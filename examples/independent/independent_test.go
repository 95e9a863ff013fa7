package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const vectorFolder = "../../spa/testdata/vectors"

// vector is a file of section 11, "Vectors".
type vector map[string][]string

func readVector(t *testing.T, path string) vector {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v := vector{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		name, value, ok := strings.Cut(line, ":")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !ok {
			t.Fatalf("%s: bad line %q", path, line)
		}
		v[name] = append(v[name], strings.TrimPrefix(value, " "))
	}
	return v
}

func (v vector) one(t *testing.T, name string) string {
	t.Helper()
	if len(v[name]) != 1 {
		t.Fatalf("%d times %q", len(v[name]), name)
	}
	return v[name][0]
}

// token is its text, which is in bytes where it does not fit a line.
func (v vector) token(t *testing.T) string {
	t.Helper()
	if len(v["token bytes"]) > 0 {
		return string(v.bytes(t, "token bytes"))
	}
	return v.one(t, "token")
}

func (v vector) bytes(t *testing.T, name string) []byte {
	t.Helper()
	return unhex(t, v.one(t, name))
}

func (v vector) int(t *testing.T, name string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(v.one(t, name), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sessions makes one for each gate key, in the order of the file.
func (v vector) sessions(t *testing.T) []*session {
	t.Helper()
	var list []*session
	for _, gate := range v["gate key"] {
		p := profile{
			serverID:  [16]byte(v.bytes(t, "server id")),
			gateKey:   [32]byte(unhex(t, gate)),
			clientID:  binary.BigEndian.Uint64(v.bytes(t, "client id")),
			clientKey: [32]byte(v.bytes(t, "client key")),
		}
		s, err := newSession(p)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

func TestVectors(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectorFolder, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			v := readVector(t, file)
			switch verdict := v.one(t, "verdict"); verdict {
			case "token-ok":
				checkToken(t, v)
			case "token-wrong":
				if _, err := parseToken(v.token(t)); err == nil {
					t.Error("token was taken")
				}
			case "receipt-ok", "receipt-wrong":
				checkReceipt(t, v, verdict == "receipt-ok")
			default:
				checkPacket(t, v, verdict)
			}
		})
	}
}

func checkToken(t *testing.T, v vector) {
	p, err := parseToken(" \t" + v.one(t, "token") + "\r\n")
	if err != nil {
		t.Fatal(err)
	}
	got := vector{
		"verdict": {"token-ok"}, "token": v["token"],
		"name": {p.name}, "client": {p.client}, "address": {p.address}, "source": {p.source},
		"server id": {hex.EncodeToString(p.serverID[:])}, "gate key": {hex.EncodeToString(p.gateKey[:])},
		"client id": {fmt.Sprintf("%016x", p.clientID)}, "client key": {hex.EncodeToString(p.clientKey[:])},
		"receipts": {strconv.FormatBool(p.receipts)},
	}
	for _, port := range p.knockPorts {
		got["knock port"] = append(got["knock port"], strconv.Itoa(int(port)))
	}
	for _, s := range p.services {
		line := s.name
		for _, r := range s.ports {
			line += " " + r.String()
		}
		got["service"] = append(got["service"], line)
	}
	if !maps.EqualFunc(got, v, slices.Equal) {
		t.Errorf("got %v\nwant %v", got, v)
	}
}

func checkReceipt(t *testing.T, v vector, ok bool) {
	s := v.sessions(t)[0]
	r, err := s.openReceipt(v.bytes(t, "request"), v.bytes(t, "receipt"))
	if !ok {
		if err == nil {
			t.Error("receipt was taken")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if int64(r.status) != v.int(t, "status") || r.time != v.int(t, "time") || addressText(r.source) != v.one(t, "source") {
		t.Errorf("got %+v", r)
	}
	if len(v["again"]) > 0 && r.again != v.int(t, "again") {
		t.Errorf("got again %d", r.again)
	}
	var services []string
	for _, g := range r.services {
		services = append(services, strings.TrimSpace(
			fmt.Sprintf("%d %s", g.millis, strings.ReplaceAll(g.String(), ",", " "))))
	}
	if !slices.Equal(services, v["service"]) {
		t.Errorf("got services %q", services)
	}
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

func checkPacket(t *testing.T, v vector, verdict string) {
	checkDerivedKeys(t, v)
	r, err := v.open(t)
	switch verdict {
	case "ok":
		if err != nil {
			t.Fatal(err)
		}
		checkRequest(t, v, r)
		checkSealing(t, v)
	case "malformed", "stale", "revoked", "retired":
		checkSealing(t, v)
		fallthrough
	default:
		if err == nil || err.Error() != verdict {
			t.Errorf("got verdict %v, want %s", err, verdict)
		}
	}
}

func checkDerivedKeys(t *testing.T, v vector) {
	s := v.sessions(t)[0]
	for name, key := range map[string][]byte{
		"request cipher": s.requestCipher, "request mac": s.requestMAC,
		"receipt cipher": s.receiptCipher, "receipt mac": s.receiptMAC,
		"nonce hedge": s.hedge, "gate mask": s.gateMask[:], "gate tag": s.gateTag[:],
	} {
		if len(v[name]) > 0 && !bytes.Equal(key, v.bytes(t, name)) {
			t.Errorf("wrong key %s", name)
		}
	}
}

func checkRequest(t *testing.T, v vector, r request) {
	kind := map[byte]string{typeOpen: "open", typeClose: "close"}[r.kind]
	if kind != v.one(t, "type") || hex.EncodeToString(r.id[:]) != v.one(t, "request id") ||
		r.time != v.int(t, "time") || int64(r.millis) != v.int(t, "for") || addressText(r.source) != v.one(t, "source") {
		t.Errorf("got %+v", r)
	}
	if len(v["first"]) > 0 && r.first != v.int(t, "first") {
		t.Errorf("got first %d", r.first)
	}
	if got := names(r.services); got != strings.Join(v["service"], ",") {
		t.Errorf("got services %s", got)
	}
	if !bytes.Equal(r.encode(), v.bytes(t, "plaintext")) {
		t.Error("the request is encoded in another way")
	}
}

// checkSealing makes the packet again, with the padding that is in it.
func checkSealing(t *testing.T, v vector) {
	sessions := v.sessions(t)
	s := sessions[len(sessions)-1]
	want, plain := v.bytes(t, "packet"), v.bytes(t, "plaintext")
	body, err := xchacha(s.requestCipher, want[:nonceSize], want[bodyOffset:len(want)-macSize])
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(body, plain) {
		t.Fatal("the body does not begin with the plaintext")
	}
	got, err := s.sealWith(plain, [32]byte(v.bytes(t, "fresh")), body[len(plain):])
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("sealed another packet (%v)", err)
	}
}

// open does the first seven checks of section 10. An error is its verdict.
func (v vector) open(t *testing.T) (request, error) {
	packet := v.bytes(t, "packet")
	if len(packet) < minPacket || len(packet) > maxPacket {
		return request{}, errors.New("length")
	}
	sessions := v.sessions(t)
	i := slices.IndexFunc(sessions, func(s *session) bool {
		return sipHash(s.gateTag, packet[:32]) == binary.BigEndian.Uint64(packet[32:])
	})
	if i < 0 {
		return request{}, errors.New("gate")
	}
	s, end := sessions[i], len(packet)-macSize
	if binary.BigEndian.Uint64(packet[24:])^sipHash(s.gateMask, packet[:nonceSize]) != s.clientID {
		return request{}, errors.New("client")
	}
	if !hmac.Equal(s.packetMAC(packet[:end]), packet[end:]) {
		return request{}, errors.New("mac")
	}
	now := v.int(t, "now")
	if len(v["revoked"]) > 0 {
		return request{}, errors.New("revoked")
	}
	if len(v["until"]) > 0 && now >= v.int(t, "until") {
		return request{}, errors.New("retired")
	}
	body, err := xchacha(s.requestCipher, packet[:nonceSize], packet[bodyOffset:end])
	if err != nil {
		return request{}, err
	}
	r, err := parseRequest(body[:maxRequest])
	if err != nil {
		return request{}, errors.New("malformed")
	}
	window := v.int(t, "window") * int64(time.Millisecond)
	if r.time < now-window || r.time > now+window {
		return request{}, errors.New("stale")
	}
	return r, nil
}

// parseRequest reads a request by all rules of section 5, as a server does.
func parseRequest(content []byte) (request, error) {
	d := &decoder{rest: content}
	d.count(version, version)
	r := request{kind: byte(d.count(typeOpen, typeClose))}
	flags := d.count(0, continued)
	count := d.count(1, maxServices)
	copy(r.id[:], d.bytes(16))
	r.time, r.millis, r.source = int64(d.u64()), d.u32(), d.address()
	for range count {
		s, err := d.service()
		if err != nil || slices.Contains(r.services, s) {
			return request{}, errors.New("malformed service")
		}
		r.services = append(r.services, s)
	}
	if flags == continued {
		if r.first = int64(d.u64()); r.first >= r.time {
			return request{}, errors.New("the first packet is not before this one")
		}
	}
	if r.kind == typeClose && r.millis != 0 {
		return request{}, errors.New("a close with a duration")
	}
	return r, d.err
}

func (d *decoder) service() (service, error) {
	first := d.u8()
	if first&0x80 == 0 {
		s := service{name: string(d.bytes(int(first)))}
		if d.err != nil || !validName(s.name) {
			return service{}, errors.New("bad name")
		}
		return s, nil
	}
	s := service{protocol: first &^ 0x80, port: d.u16()}
	if d.err != nil || s.port == 0 || s.protocol != tcp && s.protocol != udp {
		return service{}, errors.New("bad port")
	}
	return s, nil
}

// TestSipHash has the example of the paper, appendix A.
func TestSipHash(t *testing.T) {
	var key [16]byte
	message := make([]byte, 15)
	for i := range key {
		key[i] = byte(i)
	}
	copy(message, key[:])
	if got := sipHash(key, message); got != 0xa129ca6149be45e5 {
		t.Errorf("got %#x", got)
	}
}

// TestKnock runs the command against a server that ignores two packets, sends
// what has to be ignored, and answers the third.
func TestKnock(t *testing.T) {
	refused := receipt{status: 18}
	granted := receipt{status: statusGranted, services: []grant{{millis: 60000, ranges: []portRange{{tcp, 22, 22}}}}}
	closed := receipt{status: statusClosed}
	two := receipt{status: statusGranted, services: slices.Repeat(granted.services, 2)}
	for _, c := range []struct {
		name   string
		answer receipt
		args   []string
		status int
		output string
	}{
		{"granted", granted, []string{"-for", "1m"}, exitDone, "granted ssh tcp/22 for 127.0.0.1 until 20"},
		{"closed", closed, []string{"-close"}, exitDone, "closed ssh for 127.0.0.1\n"},
		{"refused", refused, nil, exitRefused, "refused: 18 not allowed for this client\n"},
		{"too many services", two, nil, exitFailed, ""},
		{"stated", granted, []string{"-source", "127.0.0.1"}, exitDone, "granted ssh tcp/22 for 127.0.0.1 until 20"},
		{"the other family", granted, []string{"-source", "2001:db8::1"}, exitFailed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, output := knockOn(t, startServer(t, c.answer), c.args...)
			if status != c.status || !strings.HasPrefix(output, c.output) || c.output == "" && output != "" {
				t.Errorf("exit status %d, output %q", status, output)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	if status, output := knockOn(t, 9, "-timeout", "200ms"); status != exitNoAnswer || output != "" {
		t.Errorf("exit status %d, output %q", status, output)
	}
}

func TestMisuse(t *testing.T) {
	for _, args := range [][]string{
		{}, {"-token", "-"}, {"-token", "-", "-service", "SSH"}, {"-token", "-", "-service", "ssh,ssh"},
		{"-token", "-", "-service", "tcp/0"}, {"-token", "-", "-service", "ssh", "-for", "-1s"},
		{"-token", "-", "-service", "ssh", "-for", "1500us"}, {"-token", "-", "-service", "tcp/22-23"},
		{"-token", "-", "-service", "ssh", "-for", "1s", "-close"}, {"-token", "-", "-service", "ssh", "x"},
		{"-token", "-", "-service", "ssh", "-source", "0.0.0.0"},
		{"-token", "-", "-service", strings.Repeat("a", 32) + "," + strings.Repeat("b", 15)},
	} {
		if status := run(args, strings.NewReader(""), &bytes.Buffer{}, &bytes.Buffer{}); status != exitMisuse {
			t.Errorf("%q: exit status %d", args, status)
		}
	}
}

// testProfile is that of token.txt, with the server on this machine.
func testProfile(t *testing.T, port uint16) profile {
	t.Helper()
	p, err := parseToken(readVector(t, filepath.Join(vectorFolder, "token.txt")).one(t, "token"))
	if err != nil {
		t.Fatal(err)
	}
	p.address, p.knockPorts = "127.0.0.1", []uint16{port}
	return p
}

// knockOn runs the command with a token for the port.
func knockOn(t *testing.T, port uint16, args ...string) (status int, output string) {
	t.Helper()
	token := encodeToken(testProfile(t, port))
	var stdout, stderr bytes.Buffer
	args = append([]string{"-token", "-", "-service", "ssh", "-timeout", "20s"}, args...)
	status = run(args, strings.NewReader(token), &stdout, &stderr)
	if strings.Contains(stdout.String()+stderr.String(), token[:20]) {
		t.Error("the output shows the token")
	}
	return status, stdout.String()
}

// encodeToken leaves the services out.
func encodeToken(p profile) string {
	var b []byte
	for _, text := range []string{p.name, p.client, p.address, p.source} {
		b = append(append(b, byte(len(text))), text...)
	}
	b = append(b, byte(len(p.knockPorts)))
	for _, port := range p.knockPorts {
		b = binary.BigEndian.AppendUint16(b, port)
	}
	b = append(append(b, p.serverID[:]...), p.gateKey[:]...)
	b = append(binary.BigEndian.AppendUint64(b, p.clientID), p.clientKey[:]...)
	b = append(b, map[bool]byte{true: 1}[p.receipts], 0)
	sum := sha256.Sum256(append([]byte(tokenLabel), b...))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:checksumSize]...))
}

// startServer answers the third packet on a port of this machine.
func startServer(t *testing.T, answer receipt) uint16 {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s, err := newSession(testProfile(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buffer := make([]byte, 300)
		for i := 1; ; i++ {
			n, from, err := conn.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			answer.time, answer.source = time.Now().UnixNano(), from.Addr()
			for _, d := range [][]byte{nil, buffer[:n], sealReceipt(s, buffer[:n], answer)} {
				if i == 3 || len(d) == 0 {
					conn.WriteToUDPAddrPort(d, from)
				}
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// sealReceipt makes a receipt for the packet. Its nonce need not be random here.
func sealReceipt(s *session, packet []byte, r receipt) []byte {
	content := binary.BigEndian.AppendUint64([]byte{version, r.status, byte(len(r.services))}, uint64(r.time))
	content = appendAddress(content, r.source)
	for _, g := range r.services {
		content = append(binary.BigEndian.AppendUint32(content, g.millis), byte(len(g.ranges)))
		for _, p := range g.ranges {
			content = binary.BigEndian.AppendUint16(append(content, p.protocol), p.low)
			content = binary.BigEndian.AppendUint16(content, p.high)
		}
	}
	nonce := mac(s.hedge, packet[:nonceSize], content)[:nonceSize]
	body, err := xchacha(s.receiptCipher, nonce, append(content, make([]byte, len(packet)-56-len(content))...))
	if err != nil {
		panic(err)
	}
	head := append(nonce, body...)
	return append(head, s.receiptMACOf(packet, head)...)
}
