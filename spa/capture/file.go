package capture

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// maxRecord is the longest record of a capture file that is read: tcpdump's own limit.
const maxRecord = 262144

// A File is a capture file as written by tcpdump and Wireshark: pcap, optionally compressed by gzip, or pcapng. It
// yields the candidates among its packets.
//
// It cannot check what only the host knew: whether a packet was addressed to it, and by which interface it came.
// Every datagram to a knock port counts, to whatever address.
type File struct {
	config  Config
	frames  unframer
	records records
	decoder *decoder
	read    int
	cut     uint64
	counts  [verdicts]uint64
}

// records are the packets of a file. At the end the error is io.EOF. A packet from next is valid until the next call.
type records interface {
	next() (record, error)
}

// record is a packet as a link carried it, or the start of one.
type record struct {
	data   []byte
	length int // of the whole packet
	at     time.Time
	link   layers.LinkType
}

// whole returns the packet with zeros for the part that was not captured.
func (r record) whole() []byte {
	if missing := min(r.length, maxRecord) - len(r.data); missing > 0 {
		return append(slices.Clip(r.data), make([]byte, missing)...)
	}
	return r.data
}

// OpenFile starts to read a capture file. It ignores Config.Interfaces.
func OpenFile(r io.Reader, c Config) (*File, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	in, err := openRecords(bufio.NewReader(r))
	if err != nil {
		return nil, fmt.Errorf("neither a pcap nor a pcapng file: %w", err)
	}
	c.Ports = slices.Clone(c.Ports)
	return &File{config: c, frames: unframer{longest: c.MaxLen}, records: in, decoder: newDecoder()}, nil
}

// Read returns the next candidate and its capture time. At the end of the file the error is io.EOF; any other names
// the record that cannot be read, and reading ends there.
func (f *File) Read() (Packet, time.Time, error) {
	for {
		r, err := f.records.next()
		if errors.Is(err, io.EOF) {
			return Packet{}, time.Time{}, io.EOF
		}
		f.read++
		var ip []byte
		if err == nil {
			ip, err = network(r.whole(), r.link)
		}
		if err != nil {
			return Packet{}, time.Time{}, fmt.Errorf("record %d: %w", f.read, err)
		}
		p, v := f.judge(ip)
		if (v.isCandidate() || v == unframed) && len(r.data) < r.length {
			f.cut++
			continue
		}
		f.counts[v]++
		if v.isCandidate() {
			return p, r.at, nil
		}
	}
}

// Stats counts the packets so far. Received is the number of all records.
func (f *File) Stats() Stats {
	return Stats{
		Received:  uint64(f.read),
		Passed:    f.counts[passed] + f.counts[framed],
		Framed:    f.counts[framed],
		BadSource: f.counts[badSource],
		Fragment:  f.counts[fragment],
		Options:   f.counts[options],
		Extension: f.counts[extension],
		Malformed: f.counts[malformed],
		Unframed:  f.counts[unframed],
		Cut:       f.cut,
	}
}

// judge classifies a record by the checks of the kernel's filter and a Sniffer.
func (f *File) judge(ip []byte) (Packet, verdict) {
	var p Packet
	var v verdict
	switch version(ip) {
	case 4:
		p, v = f.decoder.decode4(ip)
	case 6:
		p, v = f.decoder.decode6(ip)
	default: // ARP and the like
		return Packet{}, notForUs
	}
	switch {
	case v != passed:
		return Packet{}, v
	case !slices.Contains(f.config.Ports, p.To.Port()) || !f.config.fits(len(p.Data)):
		return Packet{}, notForUs
	case impossible(p.From.Addr()):
		return Packet{}, badSource
	}
	return f.frames.open(p)
}

func version(ip []byte) byte {
	if len(ip) == 0 {
		return 0
	}
	return ip[0] >> 4
}

// Types of link that the library has no name for (www.tcpdump.org/linktypes.html).
const (
	linkRaw4BSD   layers.LinkType = 12
	linkLinuxSLL2 layers.LinkType = 276 & 0xff // what tcpdump -i any writes; the library keeps one byte of it
)

// network returns the packet from its IP header on; nil if the link carried no IP.
func network(b []byte, link layers.LinkType) ([]byte, error) {
	switch link {
	case layers.LinkTypeEthernet:
		return carried(b, 12, 14), nil
	case layers.LinkTypeLinuxSLL:
		return carried(b, 14, 16), nil
	case linkLinuxSLL2:
		return carried(b, 0, 20), nil
	case layers.LinkTypeRaw, linkRaw4BSD, layers.LinkTypeIPv4, layers.LinkTypeIPv6:
		return b, nil
	case layers.LinkTypeNull, layers.LinkTypeLoop:
		return b[min(4, len(b)):], nil
	}
	return nil, fmt.Errorf("link type %d is not supported (only Ethernet, tcpdump's -i any, raw IP, loopback): "+
		"capture on the gateway itself", link)
}

// carried returns what follows a link header and VLAN tags, if that is IP. The header ends at from, and its type
// field is at kind.
func carried(b []byte, kind, from int) []byte {
	for tags := 0; tags <= 2 && len(b) >= from; tags++ {
		switch layers.EthernetType(binary.BigEndian.Uint16(b[kind:])) {
		case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6:
			return b[from:]
		case layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ:
			kind, from = from+2, from+4
		default:
			return nil
		}
	}
	return nil
}

func openRecords(r *bufio.Reader) (records, error) {
	magic, err := r.Peek(4)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is too short for both")
	}
	if err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(magic) == ngSection {
		return newNgRecords(r), nil
	}
	plain, err := pcapgo.NewReader(r)
	if err != nil {
		return nil, err
	}
	plain.SetSnaplen(maxRecord)
	return plainRecords{plain}, nil
}

type plainRecords struct{ *pcapgo.Reader }

func (r plainRecords) next() (record, error) {
	b, info, err := r.ReadPacketData()
	if b != nil && errors.Is(err, io.EOF) { // the file ends after a record's header
		err = io.ErrUnexpectedEOF
	}
	return record{b, info.Length, info.Timestamp, r.LinkType()}, err
}
