package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"

	"sallyport/keys"
	"sallyport/keys/service"
)

// A Request is what a gateway tells the office so that it gets bundles. It holds no secret. It is one line:
//
//	spagw1 NAME ADDRESS PORT[,PORT]... RECIPIENT
type Request struct {
	Name       string   // what the fleet calls the gateway
	Address    string   // where clients knock: see service.SplitAddress
	KnockPorts []uint16 // of its server.toml
	Recipient  *age.HybridRecipient
}

const requestForm = "spagw1"

// ErrRequest means that a text is not a gateway's request.
var ErrRequest = errors.New("not a gateway's line (spagw1 NAME ADDRESS PORTS RECIPIENT): was it copied whole?")

// String returns the request as one line, without its end.
func (r Request) String() string {
	ports := make([]string, len(r.KnockPorts))
	for i, port := range r.KnockPorts {
		ports[i] = strconv.Itoa(int(port))
	}
	return strings.Join([]string{requestForm, r.Name, r.Address, strings.Join(ports, ","), r.Recipient.String()}, " ")
}

// ParseRequest parses what String returns, with any white space around and between its fields: a terminal may have
// broken the line. Its error wraps ErrRequest and quotes nothing.
func ParseRequest(text string) (Request, error) {
	fields := strings.Fields(text)
	if len(fields) < 5 || fields[0] != requestForm {
		return Request{}, ErrRequest
	}
	fields[4] = strings.Join(fields[4:], "")
	r := Request{Name: fields[1], Address: fields[2]}
	if err := service.ValidName(r.Name); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if _, _, err := service.SplitAddress(r.Address); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	for part := range strings.SplitSeq(fields[3], ",") {
		port, err := strconv.ParseUint(part, 10, 16)
		if err != nil || port == 0 || slices.Contains(r.KnockPorts, uint16(port)) {
			return Request{}, fmt.Errorf("%w: its knock ports are not 1 to 65535, each once", ErrRequest)
		}
		r.KnockPorts = append(r.KnockPorts, uint16(port))
	}
	if len(r.KnockPorts) > keys.MaxKnockPorts {
		return Request{}, fmt.Errorf("%w: more than %d knock ports", ErrRequest, keys.MaxKnockPorts)
	}
	var err error
	if r.Recipient, err = ParseRecipient(fields[4]); err != nil {
		return Request{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return r, nil
}

// ParseRecipient parses an age hybrid recipient, age1pq1 and so on. Its error does not quote the text, which may be an
// identity, given by mistake.
func ParseRecipient(text string) (*age.HybridRecipient, error) {
	r, err := age.ParseHybridRecipient(text)
	if err != nil || r.String() != text {
		return nil, errors.New("a recipient begins with age1pq1 and is about 2,000 characters long: was it copied whole?")
	}
	return r, nil
}
