package spa

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/mac"
	"sallyport/keys/service"
	"sallyport/spa/lab"
)

const vectorDir = "testdata/vectors"

// A vector is a file of testdata/vectors with lines "name: value". A name may be repeated.
type vector map[string][]string

var verdicts = map[string]error{
	"ok": nil, "length": ErrLength, "gate": ErrGate, "client": ErrClient, "mac": ErrMAC,
	"revoked": ErrRevoked, "retired": ErrRetired, "malformed": ErrMalformed, "stale": ErrStale,
}

func TestVectors(t *testing.T) {
	told := map[string]bool{}
	for name, v := range readVectors(t) {
		t.Run(name, func(t *testing.T) {
			verdict := v.one(t, "verdict")
			told[verdict] = true
			switch kind, _, _ := strings.Cut(verdict, "-"); kind {
			case "receipt":
				v.testReceipt(t, verdict)
			case "token":
				v.testToken(t, verdict)
			default:
				v.testOpen(t, verdict)
			}
		})
	}
	for verdict := range verdicts {
		if !told[verdict] {
			t.Errorf("no vector has the verdict %q", verdict)
		}
	}
	for _, verdict := range []string{"receipt-ok", "receipt-wrong", "token-ok", "token-wrong"} {
		if !told[verdict] {
			t.Errorf("no vector has the verdict %q", verdict)
		}
	}
}

func (v vector) testOpen(t *testing.T, verdict string) {
	want, ok := verdicts[verdict]
	if !ok {
		t.Fatalf("unknown verdict %q", verdict)
	}
	s := v.sender(t)
	id := &Identity{Server: s.Server, Gates: gatesOf(v.gates(t)...), Window: v.duration(t, "window")}
	packet, now := v.hex(t, "packet"), v.time(t, "now")
	if want != nil {
		refuse(t, want, packet, id, v.clients(t), now)
		return
	}
	k, err := Open(packet, id, v.clients(t), now)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if want := v.request(t); !reflect.DeepEqual(k.Request, want) {
		t.Errorf("got %+v, want %+v", k.Request, want)
	}
	if plain := v.hex(t, "plaintext"); string(k.Request.append(nil)) != string(plain) {
		t.Errorf("got plaintext %x, want %x", k.Request.append(nil), plain)
	}
	fresh := v.hex(t, "fresh")
	if sum := mac.SHA256(k.Key.Hedge(), fresh, v.hex(t, "plaintext")); Nonce(sum[:nonceLen]) != k.Nonce {
		t.Errorf("the nonce is not made of fresh and plaintext")
	}
}

func (v vector) testReceipt(t *testing.T, verdict string) {
	receipt, request, s := v.hex(t, "receipt"), v.hex(t, "request"), v.sender(t)
	if verdict == "receipt-wrong" {
		refuseReceipt(t, receipt, request, s)
		return
	}
	r, err := OpenReceipt(receipt, request, s)
	if err != nil {
		t.Fatalf("OpenReceipt: %v", err)
	}
	if want := v.receipt(t); !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v, want %+v", r, want)
	}
	b, err := r.AppendBinary(nil)
	if plain := v.hex(t, "plaintext"); err != nil || string(b) != string(plain) {
		t.Errorf("got plaintext %x, %v, want %x", b, err, plain)
	}
}

func (v vector) testToken(t *testing.T, verdict string) {
	p, err := keys.ParseToken(v.token(t))
	if verdict == "token-wrong" {
		if err == nil {
			t.Error("a token with a slip in it is accepted")
		}
		return
	}
	lab.Must(t, err)
	l := &lines{}
	l.addProfile(p)
	for name, want := range parseVector(t, l.String()) {
		if !slices.Equal(v[name], want) {
			t.Errorf("%s: got %q, want %q", name, want, v[name])
		}
	}
}

// token is the text of a token, which one line cannot always hold.
func (v vector) token(t *testing.T) string {
	if _, ok := v["token bytes"]; ok {
		return string(v.hex(t, "token bytes"))
	}
	return v.one(t, "token")
}

// TestTokenFaultsAreTheOnlyOnes: without its one fault, each token with wrong content would be good.
func TestTokenFaultsAreTheOnlyOnes(t *testing.T) {
	if got := goodFields().token(); got != testProfile().Token() {
		t.Errorf("got  %s\nwant %s", got, testProfile().Token())
	}
}

// TestLongestToken checks the figure in PROTOCOL.md, section 3.
func TestLongestToken(t *testing.T) {
	p := testProfile()
	p.Name, p.Client = strings.Repeat("a", 32), strings.Repeat("a", 32)
	p.Address = strings.Repeat("a.", 124) + "aa"
	p.Source, p.KnockPorts = "stun:"+p.Address, manyNumbers(keys.MaxKnockPorts)
	p.Services = map[string][]string{}
	for i := range keys.MaxServices {
		name := fmt.Sprintf("%032d", i)
		for j := range keys.MaxServicePorts {
			p.Services[name] = append(p.Services[name], fmt.Sprintf("tcp/%d-%d", 10000+j, 20000))
		}
	}
	if n := len(p.Token()); n != 181_551 {
		t.Errorf("the longest token has %d characters", n)
	}
}

// readVectors returns the vectors by file name.
func readVectors(t testing.TB) map[string]vector {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(vectorDir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	vectors := map[string]vector{}
	for _, file := range files {
		text := lab.Value(os.ReadFile(file))(t)
		vectors[strings.TrimSuffix(filepath.Base(file), ".txt")] = parseVector(t, string(text))
	}
	return vectors
}

func parseVector(t testing.TB, text string) vector {
	t.Helper()
	v := vector{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			t.Fatalf("bad line %q", line)
		}
		v[name] = append(v[name], strings.TrimPrefix(value, " "))
	}
	return v
}

func (v vector) one(t testing.TB, name string) string {
	t.Helper()
	if len(v[name]) != 1 {
		t.Fatalf("%d times %q, want it once", len(v[name]), name)
	}
	return v[name][0]
}

func (v vector) hex(t testing.TB, name string) []byte {
	t.Helper()
	return unhex(t, v.one(t, name))
}

func (v vector) int(t testing.TB, name string) int64 {
	t.Helper()
	n := lab.Value(strconv.ParseInt(v.one(t, name), 10, 64))(t)
	return n
}

func (v vector) time(t testing.TB, name string) time.Time { return time.Unix(0, v.int(t, name)) }

func (v vector) duration(t testing.TB, name string) time.Duration {
	return time.Duration(v.int(t, name)) * time.Millisecond
}

func (v vector) addr(t testing.TB, name string) netip.Addr {
	s := v.one(t, name)
	if s == "none" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func (v vector) letIn(t testing.TB) netip.Prefix {
	if _, ok := v["let in"]; !ok {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(v.one(t, "let in"))
}

func (v vector) gates(t testing.TB) []keys.GateKey {
	var gates []keys.GateKey
	for _, s := range v["gate key"] {
		gates = append(gates, keys.GateKeyFromBytes([32]byte(unhex(t, s))))
	}
	return gates
}

func (v vector) sender(t testing.TB) Sender {
	id := lab.Value(keys.ParseID(v.one(t, "client id")))(t)
	return Sender{
		Server: keys.ServerID(v.hex(t, "server id")),
		ID:     id,
		Key:    keys.KeyFromBytes([32]byte(v.hex(t, "client key"))),
	}
}

// clients returns the server's only client.
func (v vector) clients(t testing.TB) Clients {
	s := v.sender(t)
	c := keys.Credential{Client: keys.Client{Name: "alice", ID: s.ID, Key: s.Key}, ID: s.ID, Key: s.Key}
	if _, ok := v["revoked"]; ok {
		c.Client.Revoked = v.time(t, "revoked")
	}
	if _, ok := v["until"]; ok {
		c.Until = v.time(t, "until")
	}
	return clientMap{s.ID: c}
}

func (v vector) request(t testing.TB) Request {
	r := Request{
		ID:     RequestID(v.hex(t, "request id")),
		Type:   map[string]Type{"open": TypeOpen, "close": TypeClose}[v.one(t, "type")],
		Time:   v.time(t, "time"),
		For:    v.duration(t, "for"),
		Source: v.addr(t, "source"),
	}
	if _, ok := v["first"]; ok {
		r.First = v.time(t, "first")
	}
	r.LetIn = v.letIn(t)
	for _, text := range v["service"] {
		s := lab.Value(service.ParseService(text))(t)
		r.Services = append(r.Services, s)
	}
	return r
}

func (v vector) receipt(t testing.TB) Receipt {
	r := Receipt{Status: Status(v.int(t, "status")), Time: v.time(t, "time"), Source: v.addr(t, "source")}
	if _, ok := v["again"]; ok {
		r.Again = v.time(t, "again")
	}
	r.LetIn = v.letIn(t)
	for _, text := range v["service"] {
		r.Services = append(r.Services, parseGrantingText(t, text))
	}
	return r
}

// parseGrantingText reads "30000 tcp/22 udp/53-54 more".
func parseGrantingText(t testing.TB, text string) Granting {
	words := strings.Fields(text)
	ms := lab.Value(strconv.Atoi(words[0]))(t)
	g := Granting{For: time.Duration(ms) * time.Millisecond}
	for _, w := range words[1:] {
		switch w {
		case "more":
			g.More = true
			continue
		case "started":
			g.Started = true
			continue
		case "once":
			g.Once = true
			continue
		}
		p := lab.Value(service.ParsePorts(w))(t)
		g.Ports = append(g.Ports, p)
	}
	return g
}

// TestVectorsAreGenerated: making the vectors again gives exactly the bytes of the files.
func TestVectorsAreGenerated(t *testing.T) { lab.Vectors(t, vectorDir, makeVectors(t)) }

// lines writes a vector.
type lines struct{ strings.Builder }

func (l *lines) add(name string, value any) {
	if b, ok := value.([]byte); ok {
		value = hex.EncodeToString(b)
	}
	fmt.Fprintln(l, strings.TrimSuffix(fmt.Sprintf("%s: %v", name, value), " "))
}
