// Package nl holds what all users of netfilter netlink sockets here share: attributes, the kernel's answers, and a
// socket that reports changes of the rule set.
package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Chunk is how many elements of a set a message holds: their attribute must stay under 64 KiB.
	Chunk = 500
	// SocketBuffer has room for a batch with a full table, and for its answers.
	SocketBuffer = 128 << 20

	headerSize = 16 // struct nlmsghdr
)

// ErrNoAnswer is returned when the kernel's answer to a message is missing.
var ErrNoAnswer = errors.New("the kernel's answer was lost")

// Size gives a socket the buffers that a full table needs.
func Size(c *netlink.Conn) error {
	return errors.Join(c.SetReadBuffer(SocketBuffer), c.SetWriteBuffer(SocketBuffer))
}

// Explain adds to an errno of the kernel what was being done and what the errno means.
func Explain(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: CAP_NET_ADMIN is missing; run as root, or give the program that capability: %w", doing, err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%s: this kernel has no nftables (CONFIG_NF_TABLES): %w", doing, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// NoNftables reports whether an error is that of a kernel without nf_tables.
func NoNftables(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// Attribute appends a netlink attribute: length, type, value, padded to four bytes.
func Attribute(data []byte, kind uint16, value []byte) []byte {
	data = binary.NativeEndian.AppendUint16(data, uint16(4+len(value)))
	data = binary.NativeEndian.AppendUint16(data, kind)
	data = append(data, value...)
	return append(data, make([]byte, -len(value)&3)...)
}

// Text appends an attribute whose value is a string that ends with a zero byte.
func Text(data []byte, kind uint16, s string) []byte {
	return Attribute(data, kind, append([]byte(s), 0))
}

// Nested appends an attribute whose value is the attributes that fill appends.
func Nested(data []byte, kind uint16, fill func([]byte) []byte) []byte {
	start := len(data)
	data = fill(Attribute(data, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(data[start:], uint16(len(data)-start))
	return data
}

// Send sends messages in one system call, and gives each of them its sequence number. The connection's own SendMessages
// starts a goroutine for each call, which doubles what a grant costs this process.
func Send(c *netlink.Conn, ms []netlink.Message) error {
	size := 0
	sequence := rand.Uint32() // no answer to an earlier batch is taken for one to this
	for i := range ms {
		h := &ms[i].Header
		h.Length, h.Sequence = uint32(headerSize+(len(ms[i].Data)+3)&^3), sequence+uint32(i)
		size += int(h.Length)
	}
	b := make([]byte, 0, size)
	for _, m := range ms {
		b = appendMessage(b, m)
	}
	return write(c, b)
}

// appendMessage appends a message with its header (struct nlmsghdr), padded to four bytes.
func appendMessage(b []byte, m netlink.Message) []byte {
	b = binary.NativeEndian.AppendUint32(b, m.Header.Length)
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Type))
	b = binary.NativeEndian.AppendUint16(b, uint16(m.Header.Flags))
	b = binary.NativeEndian.AppendUint32(b, m.Header.Sequence)
	b = binary.NativeEndian.AppendUint32(b, m.Header.PID)
	b = append(b, m.Data...)
	return append(b, make([]byte, -len(m.Data)&3)...)
}

func write(c *netlink.Conn, b []byte) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) (done bool) {
		for {
			failed = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	return errors.Join(err, os.NewSyscallError("sendto", failed))
}

// Drain discards all messages that can be read now. The kernel answers a batch before the call that sends it returns.
func Drain(c *netlink.Conn) error {
	return receive(c, make([]byte, 1), unix.MSG_TRUNC, func(_ []byte, err error) (stop bool) {
		return err != nil && err != unix.ENOBUFS
	})
}

// Answers calls tell with each acknowledgement, as the number of its message and an errno (zero for success), until
// tell returns true or the message with the number last is acknowledged. It does not wait: an answer that is not
// there yet was lost.
func Answers(c *netlink.Conn, last uint32, tell func(sequence uint32, errno unix.Errno) (stop bool)) error {
	result := ErrNoAnswer
	err := receive(c, make([]byte, 512), 0, func(b []byte, err error) (stop bool) {
		if err != nil {
			return true
		}
		if len(b) < headerSize+4 || binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
			return false
		}
		sequence := binary.NativeEndian.Uint32(b[8:])
		if !tell(sequence, unix.Errno(-int32(binary.NativeEndian.Uint32(b[headerSize:])))) && sequence != last {
			return false
		}
		result = nil
		return true
	})
	return errors.Join(err, result)
}

// Answer returns the errno of the first message that failed, or nil once the message with that number is
// acknowledged.
func Answer(c *netlink.Conn, sequence uint32) error {
	var failed error
	err := Answers(c, sequence, func(_ uint32, errno unix.Errno) (stop bool) {
		if errno != 0 {
			failed = errno
		}
		return errno != 0
	})
	return errors.Join(err, failed)
}

// receive reads what is there without waiting, which the socket's own Receive would do.
func receive(c *netlink.Conn, b []byte, flags int, each func(b []byte, err error) (stop bool)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		for {
			n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT|flags)
			if err == unix.EINTR {
				continue
			}
			if each(b[:max(0, min(n, len(b)))], err) {
				return
			}
		}
	})
}
