package main

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/chacha20"
)

// Sizes of section 4, "The packet", and section 5, "The request".
const (
	packetOverhead = 72
	minPacket      = 168
	maxPacket      = 256
	nonceSize      = 24
	bodyOffset     = 40
	macSize        = 32
	maxRequest     = 96
	maxServices    = 8
)

const (
	version   = 1
	typeOpen  = 1
	typeClose = 2
	continued = 1 // a flag
	tcp       = 6
	udp       = 17
)

var protocols = map[string]byte{"tcp": tcp, "udp": udp}

// session has what seals packets and opens receipts: the ids and the derived
// keys of section 2.
type session struct {
	serverID      [16]byte
	clientID      uint64
	requestCipher []byte
	requestMAC    []byte
	receiptCipher []byte
	receiptMAC    []byte
	hedge         []byte
	gateMask      [16]byte
	gateTag       [16]byte
}

func newSession(p profile) (*session, error) {
	s := &session{serverID: p.serverID, clientID: p.clientID}
	var mask, tag []byte
	var errs []error
	derive := func(out *[]byte, key []byte, info string, n int) {
		var err error
		*out, err = hkdf.Key(sha256.New, key, nil, "sallyport 1 "+info, n)
		errs = append(errs, err)
	}
	derive(&s.requestCipher, p.clientKey[:], "request cipher", 32)
	derive(&s.requestMAC, p.clientKey[:], "request mac", 32)
	derive(&s.receiptCipher, p.clientKey[:], "receipt cipher", 32)
	derive(&s.receiptMAC, p.clientKey[:], "receipt mac", 32)
	derive(&s.hedge, p.clientKey[:], "nonce hedge", 32)
	derive(&mask, p.gateKey[:], "gate mask", 16)
	derive(&tag, p.gateKey[:], "gate tag", 16)
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("derive keys: %w", err)
	}
	copy(s.gateMask[:], mask)
	copy(s.gateTag[:], tag)
	return s, nil
}

// seal makes a new packet of an encoded request (section 4): the length drawn
// independently of the request, and everything random in it.
func (s *session) seal(request []byte) ([]byte, error) {
	extra, err := rand.Int(rand.Reader, big.NewInt(maxPacket-minPacket+1))
	if err != nil {
		return nil, fmt.Errorf("draw a length: %w", err)
	}
	size := minPacket + int(extra.Int64()) - packetOverhead
	if len(request) > maxRequest {
		return nil, fmt.Errorf("request of %d bytes", len(request))
	}
	random := make([]byte, 32+size-len(request))
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("draw padding: %w", err)
	}
	return s.sealWith(request, [32]byte(random[:32]), random[32:])
}

// sealWith is seal with all that is random given.
func (s *session) sealWith(request []byte, fresh [32]byte, padding []byte) ([]byte, error) {
	nonce := mac(s.hedge, fresh[:], request)[:nonceSize] // section 4.1
	packet := slices.Clone(nonce)
	packet = binary.BigEndian.AppendUint64(packet, s.clientID^sipHash(s.gateMask, nonce))
	packet = binary.BigEndian.AppendUint64(packet, sipHash(s.gateTag, packet))
	body, err := xchacha(s.requestCipher, nonce, slices.Concat(request, padding))
	if err != nil {
		return nil, err
	}
	packet = append(packet, body...)
	return append(packet, s.packetMAC(packet)...), nil
}

// packetMAC is the mac over a packet without its mac.
func (s *session) packetMAC(packet []byte) []byte {
	return mac(s.requestMAC, []byte("sallyport 1 request"), s.serverID[:], packet)
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		h.Write(part)
	}
	return h.Sum(nil)
}

// xchacha returns data XOR XChaCha20(key, nonce), from block counter 0.
func xchacha(key, nonce, data []byte) ([]byte, error) {
	stream, err := chacha20.NewUnauthenticatedCipher(key, nonce)
	if err != nil {
		return nil, fmt.Errorf("start cipher: %w", err)
	}
	out := make([]byte, len(data))
	stream.XORKeyStream(out, data)
	return out, nil
}

// request is what section 5 describes.
type request struct {
	kind     byte
	id       [16]byte
	time     int64  // nanoseconds since 1970
	first    int64  // time of the command's first packet, where this one is continued; else 0
	millis   uint32 // how long, 0 leaves it to the server
	source   netip.Addr
	services []service
}

// service is asked for by its name or, where that is empty, by a port.
type service struct {
	name     string
	protocol byte
	port     uint16
}

// parseService reads a name, or a port as tcp/22.
func parseService(text string) (service, error) {
	if !strings.Contains(text, "/") {
		if !validName(text) {
			return service{}, fmt.Errorf("bad name of a service %q", text)
		}
		return service{name: text}, nil
	}
	r, err := parseRange(text)
	if err != nil {
		return service{}, err
	}
	if r.low != r.high {
		return service{}, fmt.Errorf("%q is a range: ask for single ports", text)
	}
	return service{protocol: r.protocol, port: r.low}, nil
}

// parseServices reads a list with commas, and checks the rules for all of it.
func parseServices(list string) ([]service, error) {
	var services []service
	for text := range strings.SplitSeq(list, ",") {
		s, err := parseService(text)
		if err != nil {
			return nil, err
		}
		if slices.Contains(services, s) {
			return nil, fmt.Errorf("service %s stands twice", s)
		}
		services = append(services, s)
	}
	if len(services) > maxServices {
		return nil, fmt.Errorf("%d services: %d is the most", len(services), maxServices)
	}
	if n := len((request{services: services}).encode()); n > maxRequest {
		return nil, fmt.Errorf("the services take %d bytes too many", n-maxRequest)
	}
	return services, nil
}

func (s service) String() string {
	if s.name != "" {
		return s.name
	}
	return portRange{s.protocol, s.port, s.port}.String()
}

// encode lays the request out as in the table of section 5.
func (r request) encode() []byte {
	b := []byte{version, r.kind, 0, byte(len(r.services))}
	if r.first != 0 {
		b[2] = continued
	}
	b = append(b, r.id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.time))
	b = binary.BigEndian.AppendUint32(b, r.millis)
	b = appendAddress(b, r.source)
	for _, s := range r.services {
		b = s.append(b)
	}
	if r.first != 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(r.first))
	}
	return b
}

func (s service) append(b []byte) []byte {
	if s.name != "" {
		return append(append(b, byte(len(s.name))), s.name...)
	}
	return binary.BigEndian.AppendUint16(append(b, 0x80|s.protocol), s.port)
}

// appendAddress appends the 16 bytes of section 1, zeros for the zero Addr.
func appendAddress(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return append(b, make([]byte, 16)...)
	}
	raw := a.As16()
	return append(b, raw[:]...)
}
