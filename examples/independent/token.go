package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// profile is what a token says (section 3, "The enrolment token").
type profile struct {
	name       string
	client     string
	address    string
	source     string
	knockPorts []uint16
	serverID   [16]byte
	gateKey    [32]byte
	clientID   uint64
	clientKey  [32]byte
	receipts   bool
	services   []offer
}

// offer is a service that a token lists, with its ports.
type offer struct {
	name  string
	ports []portRange
}

const (
	tokenPrefix   = "spa1"
	tokenLabel    = "sallyport 1 token"
	checksumSize  = 8
	maxKnockPorts = 32
	maxOffers     = 128
	maxOfferPorts = 64
)

// parseToken reads a token. No error tells what is in it: it is a secret.
func parseToken(text string) (profile, error) {
	body, err := decodeToken(strings.Trim(text, " \t\r\n"))
	if err != nil {
		return profile{}, fmt.Errorf("token: %w", err)
	}
	p, err := parseBody(body)
	if err != nil {
		return profile{}, fmt.Errorf("token: %w", err)
	}
	return p, nil
}

// decodeToken takes the text apart, checks the checksum and returns the body.
func decodeToken(text string) ([]byte, error) {
	encoded, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return nil, errors.New("does not begin with " + tokenPrefix)
	}
	if strings.ContainsAny(encoded, "\r\n") { // the decoder would skip these
		return nil, errors.New("white space inside")
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) < checksumSize {
		return nil, errors.New("not base64url, or cut off")
	}
	body, checksum := raw[:len(raw)-checksumSize], raw[len(raw)-checksumSize:]
	sum := sha256.Sum256(append([]byte(tokenLabel), body...))
	if subtle.ConstantTimeCompare(sum[:checksumSize], checksum) != 1 {
		return nil, errors.New("wrong checksum: mistyped or cut off")
	}
	return body, nil
}

// parseBody reads the fields in their order and checks them.
func parseBody(body []byte) (profile, error) {
	d := &decoder{rest: body}
	p := profile{name: d.text(), client: d.text(), address: d.text(), source: d.text()}
	for range d.count(1, maxKnockPorts) {
		p.knockPorts = append(p.knockPorts, d.u16())
	}
	copy(p.serverID[:], d.bytes(16))
	copy(p.gateKey[:], d.bytes(32))
	p.clientID = d.u64()
	copy(p.clientKey[:], d.bytes(32))
	p.receipts = d.count(0, 1) == 1
	for range d.count(0, maxOffers) {
		p.services = append(p.services, d.offer())
	}
	if d.err == nil && len(d.rest) > 0 {
		d.err = errors.New("something follows the services")
	}
	if d.err != nil {
		return profile{}, d.err
	}
	return p, p.check()
}

// check applies the rules that need no more than the decoded fields.
func (p profile) check() error {
	if !validName(p.name) || !validName(p.client) {
		return errors.New("bad name of the server or the client")
	}
	if _, _, err := splitAddress(p.address); err != nil {
		return err
	}
	if err := checkSourceText(p.source); err != nil {
		return err
	}
	if p.clientID == 0 || p.serverID == [16]byte{} {
		return errors.New("client id or server id 0")
	}
	for i, port := range p.knockPorts {
		if port == 0 || slices.Contains(p.knockPorts[:i], port) {
			return errors.New("knock port 0, or one twice")
		}
	}
	for i, s := range p.services {
		if !validName(s.name) || i > 0 && p.services[i-1].name >= s.name {
			return errors.New("services badly named or not sorted")
		}
		for j, ports := range s.ports {
			if slices.Contains(s.ports[:j], ports) {
				return errors.New("ports of a service twice")
			}
		}
	}
	return nil
}

// checkSourceText is stricter than parseSource: an address has one spelling
// here, and a STUN server is well-formed though nobody asks it.
func checkSourceText(text string) error {
	if host, stun := strings.CutPrefix(text, "stun:"); stun {
		_, _, err := splitAddress(host)
		return err
	}
	rule, err := parseSource(text)
	if err == nil && rule.address.IsValid() && rule.address.String() != text {
		err = errors.New("source address not in its one spelling")
	}
	return err
}

// endpoints returns the host to resolve and the ports to knock on.
func (p profile) endpoints() (host string, ports []uint16, err error) {
	host, port, err := splitAddress(p.address)
	if port != 0 {
		return host, []uint16{port}, err
	}
	return host, p.knockPorts, err
}

const maxAddress = 250

var errAddress = errors.New("bad address of the server")

// splitAddress reads an address with or without a port, 0 where it has none.
func splitAddress(address string) (host string, port uint16, err error) {
	if len(address) > maxAddress {
		return "", 0, errAddress
	}
	if _, err := netip.ParseAddr(address); err == nil {
		return address, 0, checkHost(address)
	}
	host, digits := address, ""
	colon := strings.LastIndexByte(address, ':')
	if colon >= 0 && !strings.HasSuffix(address, "]") {
		host, digits = address[:colon], address[colon+1:]
		if port, err = parsePort(digits); err != nil {
			return "", 0, fmt.Errorf("address of the server: %w", err)
		}
	}
	if inner, brackets := strings.CutPrefix(host, "["); brackets {
		inner, closed := strings.CutSuffix(inner, "]")
		if !closed || !strings.Contains(inner, ":") {
			return "", 0, errAddress
		}
		return inner, port, checkHost(inner)
	}
	if strings.Contains(host, ":") { // IPv6 with a port needs its brackets
		return "", 0, errAddress
	}
	return host, port, checkHost(host)
}

// checkHost tells whether host is an IP address of one machine, or could be a
// host name.
func checkHost(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() {
			return errAddress
		}
		return nil
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if !validLabel(label) {
			return errAddress
		}
	}
	if isDigit(rune(host[len(host)-1])) && strings.Trim(host, "0123456789.") == "" {
		return errAddress
	}
	return nil
}

func validLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(label, func(r rune) bool {
		return r != '-' && r != '_' && !isDigit(r) && !isLower(r) && !(r >= 'A' && r <= 'Z')
	})
}

// validName is the rule for names in section 1.
func validName(name string) bool {
	if len(name) < 1 || len(name) > 32 || name[0] == '-' {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && !isDigit(r) && !isLower(r)
	})
}

func isDigit(r rune) bool { return r >= '0' && r <= '9' }
func isLower(r rune) bool { return r >= 'a' && r <= 'z' }

// parsePort reads a port in its one decimal form, not 0.
func parsePort(digits string) (uint16, error) {
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != digits {
		return 0, fmt.Errorf("bad port %q", digits)
	}
	return uint16(n), nil
}

// parseRange reads tcp/22 or udp/60000-60010.
func parseRange(text string) (portRange, error) {
	protocol, ports, _ := strings.Cut(text, "/")
	r := portRange{protocol: protocols[protocol]}
	if r.protocol == 0 {
		return portRange{}, fmt.Errorf("bad protocol in %q", text)
	}
	low, high, isRange := strings.Cut(ports, "-")
	var err error
	if r.low, err = parsePort(low); err != nil {
		return portRange{}, err
	}
	r.high = r.low
	if !isRange {
		return r, nil
	}
	if r.high, err = parsePort(high); err != nil || r.high <= r.low {
		return portRange{}, fmt.Errorf("bad range of ports %q", text)
	}
	return r, nil
}

// decoder reads big-endian fields one after the other and keeps its first
// error; after it all values are zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) bytes(n int) []byte {
	if d.err == nil && len(d.rest) < n {
		d.err = errors.New("cut off")
	}
	if d.err != nil {
		return make([]byte, n)
	}
	head := d.rest[:n]
	d.rest = d.rest[n:]
	return head
}

func (d *decoder) u8() byte    { return d.bytes(1)[0] }
func (d *decoder) u16() uint16 { return binary.BigEndian.Uint16(d.bytes(2)) }
func (d *decoder) u32() uint32 { return binary.BigEndian.Uint32(d.bytes(4)) }
func (d *decoder) u64() uint64 { return binary.BigEndian.Uint64(d.bytes(8)) }

// text is one byte with a length, then as many bytes.
func (d *decoder) text() string { return string(d.bytes(int(d.u8()))) }

// count reads one byte that has to be between the two bounds.
func (d *decoder) count(least, most int) int {
	n := int(d.u8())
	if d.err == nil && (n < least || n > most) {
		d.err = fmt.Errorf("a number is %d, not between %d and %d", n, least, most)
	}
	if d.err != nil {
		return 0
	}
	return n
}

func (d *decoder) offer() offer {
	s := offer{name: d.text()}
	for range d.count(1, maxOfferPorts) {
		r, err := parseRange(d.text())
		if d.err == nil {
			d.err = err
		}
		s.ports = append(s.ports, r)
	}
	return s
}

// address reads 16 bytes (section 1). The zero Addr stands for no address.
func (d *decoder) address() netip.Addr {
	a := netip.AddrFrom16([16]byte(d.bytes(16)))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	a = a.Unmap()
	if d.err == nil && a.IsUnspecified() {
		d.err = errors.New("0.0.0.0 is no address")
	}
	return a
}
