//go:build !linux

package capture

import (
	"errors"
	"fmt"

	"sallyport/spa/capture/gate"
)

var errUnsupported = fmt.Errorf("packets can be captured on Linux only: %w", errors.ErrUnsupported)

// Sniffer reads the packets that may be knocks. It exists on Linux only.
type Sniffer struct{ _ [0]func() }

// Listen returns an error that wraps errors.ErrUnsupported.
func Listen(Config) (*Sniffer, error) { return nil, errUnsupported }

// Read returns an error that wraps errors.ErrUnsupported.
func (*Sniffer) Read() (Packet, error) { return Packet{}, errUnsupported }

// Stats returns zeros.
func (*Sniffer) Stats() Stats { return Stats{} }

// Interfaces returns none.
func (*Sniffer) Interfaces() []string { return nil }

// Gate returns none.
func (*Sniffer) Gate() Gating { return Gating{} }

// SetGateKeys does nothing.
func (*Sniffer) SetGateKeys([]gate.Key) {}

// Copied does nothing.
func (*Sniffer) Copied(Packet, bool) {}

// Close does nothing.
func (*Sniffer) Close() error { return nil }

// Responder answers packets from where they were sent to. It exists on Linux only.
type Responder struct{ _ [0]func() }

// NewResponder returns an error that wraps errors.ErrUnsupported.
func NewResponder(uint32) (*Responder, error) { return nil, errUnsupported }

// Send returns an error that wraps errors.ErrUnsupported.
func (*Responder) Send(Packet, []byte, bool) error { return errUnsupported }

// Close does nothing.
func (*Responder) Close() error { return nil }

// Bound reads knocks from bound sockets. It exists on Linux only.
type Bound struct{ _ [0]func() }

// Bind returns an error that wraps errors.ErrUnsupported.
func Bind(Config, uint32) (*Bound, error) { return nil, errUnsupported }

// Read returns an error that wraps errors.ErrUnsupported.
func (*Bound) Read() (Packet, error) { return Packet{}, errUnsupported }

// Send returns an error that wraps errors.ErrUnsupported.
func (*Bound) Send(Packet, []byte, bool) error { return errUnsupported }

// Stats returns zeros.
func (*Bound) Stats() Stats { return Stats{} }

// Interfaces returns none.
func (*Bound) Interfaces() []string { return nil }

// Gate returns none.
func (*Bound) Gate() Gating { return Gating{} }

// SetGateKeys does nothing.
func (*Bound) SetGateKeys([]gate.Key) {}

// Copied does nothing.
func (*Bound) Copied(Packet, bool) {}

// Close does nothing.
func (*Bound) Close() error { return nil }
