package iptables

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers from linux/netfilter_ipv4/ip_tables.h, the same for IPv6, and the layout of struct ipt_entry and
// ip6t_entry: an entry has its counters before its matches.
const (
	legacyInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	legacyEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES

	legacyName     = 32 // XT_TABLE_MAXNAMELEN
	legacyInfoSize = 84
	legacySizeAt   = 80 // struct ipt_getinfo: size

	entryHead4 = 84  // struct ipt_ip
	entryHead6 = 136 // struct ip6t_ip6
	// After the head: nfcache 4, target_offset 2, next_offset 2, comefrom 4, padded, then the counters.
)

// paddedForCounters returns the next offset at which struct xt_counters, and so an entry containing one, may begin: a
// multiple of eight, but of four on 386.
func paddedForCounters(at int) int {
	align := 8
	if runtime.GOARCH == "386" {
		align = 4
	}
	return (at + align - 1) &^ (align - 1)
}

// LegacyTables reads the tables of legacy iptables without a program: the kernel does not report changes to them, but
// returns their rules.
type LegacyTables struct {
	sockets map[bool]*os.File // true: for IPv6
	good    [sha256.Size]byte // sum of the tables when the guard was last found complete
}

// OpenLegacyTables opens the sockets for reading the tables.
func OpenLegacyTables(noIPv6 bool) (*LegacyTables, error) {
	l := &LegacyTables{sockets: make(map[bool]*os.File)}
	for _, v6 := range []bool{false, true} {
		if v6 && noIPv6 {
			continue
		}
		domain := unix.AF_INET
		if v6 {
			domain = unix.AF_INET6
		}
		fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(os.NewSyscallError("socket", err), l.Close())
		}
		l.sockets[v6] = os.NewFile(uintptr(fd), "tables")
	}
	return l, nil
}

// Close closes the sockets.
func (l *LegacyTables) Close() error {
	var errs []error
	for _, socket := range l.sockets {
		errs = append(errs, socket.Close())
	}
	return errors.Join(errs...)
}

// Sum returns a hash of all rules in the tables that contain ours, which nat does only if ports are forwarded: asking
// for a missing table would create it.
func (l *LegacyTables) Sum(nat bool) ([sha256.Size]byte, error) {
	h := sha256.New()
	for _, v6 := range []bool{false, true} {
		socket, speaks := l.sockets[v6]
		if !speaks {
			continue
		}
		for _, t := range Tables() {
			if t.name == natTable && !nat {
				continue
			}
			rules, err := rulesOver(socket, v6, t.name)
			if err != nil {
				return [sha256.Size]byte{}, fmt.Errorf("reading table %s: %w", t.name, err)
			}
			h.Write(binary.NativeEndian.AppendUint32(nil, uint32(len(rules))))
			h.Write(rules)
		}
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// rulesOver is legacyRules for a socket that may be closed during the call.
func rulesOver(socket *os.File, v6 bool, name string) (rules []byte, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	closed := raw.Control(func(fd uintptr) { rules, err = legacyRules(int(fd), v6, name) })
	return rules, errors.Join(closed, err)
}

// legacyRules returns the rules of a table with their counters cleared; nil if there is no such table.
func legacyRules(fd int, v6 bool, name string) ([]byte, error) {
	level := unix.SOL_IP
	if v6 {
		level = unix.SOL_IPV6
	}
	rules := paddedForCounters(legacyName + 4) // in struct ipt_get_entries, after name and size
	for {
		info := make([]byte, legacyInfoSize)
		copy(info, name)
		if err := getsockopt(fd, level, legacyInfo, info); err != nil {
			if err == unix.ENOENT || err == unix.ENOPROTOOPT {
				return nil, nil
			}
			return nil, os.NewSyscallError("getsockopt", err)
		}
		size := binary.NativeEndian.Uint32(info[legacySizeAt:])
		b := make([]byte, rules+int(size))
		copy(b, name)
		binary.NativeEndian.PutUint32(b[legacyName:], size)
		err := getsockopt(fd, level, legacyEntries, b)
		if err == unix.EAGAIN {
			continue // the table was changed in between
		}
		if err != nil {
			return nil, os.NewSyscallError("getsockopt", err)
		}
		return clearCounters(b[rules:], v6), nil
	}
}

// clearCounters clears the counters, which change with each packet.
func clearCounters(rules []byte, v6 bool) []byte {
	head := entryHead4
	if v6 {
		head = entryHead6
	}
	counters := paddedForCounters(head + 12)
	for at := 0; at+counters+16 <= len(rules); {
		clear(rules[at+counters:][:16])
		next := int(binary.NativeEndian.Uint16(rules[at+head+6:]))
		if next == 0 {
			break
		}
		at += next
	}
	return rules
}

func getsockopt(fd, level, name int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
