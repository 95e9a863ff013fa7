package capture

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

var (
	captured   = time.Date(2026, 3, 1, 12, 0, 0, 5000, time.UTC)
	fileConfig = Config{Ports: []uint16{62201}, MinLen: 1, MaxLen: 256}
)

// Link-layer headers, without the protocol.
const (
	macs    = "020000000001020000000002"
	sllHead = "0000000100060200000000010000"
	sll2    = "000000000002000100060200000000010000" // after the protocol
)

func pcap(t testing.TB, link uint32, frames ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	lab.Must(t, w.WriteFileHeader(65536, layers.LinkTypeEthernet))
	binary.LittleEndian.PutUint32(b.Bytes()[20:], link) // the library's own type has too few bits
	for i, frame := range frames {
		data := fromHex(t, frame)
		info := gopacket.CaptureInfo{Timestamp: captured.Add(time.Duration(i) * time.Hour),
			CaptureLength: len(data), Length: len(data)}
		lab.Must(t, w.WritePacket(info, data))
	}
	return b.Bytes()
}

func pcapng(t testing.TB, frames ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, pcapgo.NgInterface{LinkType: layers.LinkTypeEthernet,
		TimestampResolution: 9}, pcapgo.DefaultNgWriterOptions)
	lab.Must(t, err)
	raw := lab.Value(w.AddInterface(pcapgo.NgInterface{LinkType: layers.LinkTypeRaw, TimestampResolution: 9}))(t)
	for i, frame := range frames {
		data := fromHex(t, frame)
		info := gopacket.CaptureInfo{Timestamp: captured, CaptureLength: len(data), Length: len(data),
			InterfaceIndex: i % 2 * raw}
		lab.Must(t, w.WritePacket(info, data))
	}
	lab.Must(t, w.Flush())
	return b.Bytes()
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	lab.Must(t, err)
	lab.Must(t, w.Close())
	return out.Bytes()
}

// readFile reads a capture file to its end or to the first error.
func readFile(t testing.TB, b []byte) ([]Packet, Stats, error) {
	t.Helper()
	f, err := OpenFile(bytes.NewReader(b), fileConfig)
	if err != nil {
		return nil, Stats{}, err
	}
	var got []Packet
	for {
		p, at, err := f.Read()
		if errors.Is(err, io.EOF) {
			return got, f.Stats(), nil
		}
		if err != nil {
			return got, f.Stats(), err
		}
		if at.Before(captured) || at.After(captured.Add(5*time.Hour)) {
			t.Errorf("captured at %v, want %v", at, captured)
		}
		p.Data = bytes.Clone(p.Data)
		got = append(got, p)
	}
}

// TestFile: all file formats and link types that tcpdump writes on a gateway.
func TestFile(t *testing.T) {
	want := []string{"10.0.0.2:40000", "[2001:db8::2]:40000"}
	for name, file := range map[string][]byte{
		"Ethernet":   pcap(t, 1, macs+"0800"+whole4, macs+"86dd"+whole6),
		"padded":     pcap(t, 1, macs+"0800"+whole4+"000000000000", macs+"86dd"+whole6+"0000"),
		"VLAN":       pcap(t, 1, macs+"81000064"+"0800"+whole4, macs+"81000064"+"86dd"+whole6),
		"two VLANs":  pcap(t, 1, macs+"88a80064"+"81000065"+"0800"+whole4, macs+"81000064"+"81000065"+"86dd"+whole6),
		"any":        pcap(t, 113, sllHead+"0800"+whole4, sllHead+"86dd"+whole6),
		"any, VLAN":  pcap(t, 113, sllHead+"81000064"+"0800"+whole4, sllHead+"81000064"+"86dd"+whole6),
		"any, newer": pcap(t, 276, "0800"+sll2+whole4, "86dd"+sll2+whole6),
		"raw":        pcap(t, 101, whole4, whole6),
		"raw of BSD": pcap(t, 12, whole4, whole6),
		"loopback":   pcap(t, 0, "02000000"+whole4, "1e000000"+whole6),
		"by gzip":    zipped(t, pcap(t, 1, macs+"0800"+whole4, macs+"86dd"+whole6)),
		"pcapng":     pcapng(t, macs+"0800"+whole4, whole6),
		"among other": pcap(t, 1, macs+"0806"+"0001", "ffff", macs+"0800"+whole4, macs+"81000064", macs+"86dd"+whole6,
			macs+"88a80064"),
	} {
		t.Run(name, func(t *testing.T) {
			got, stats, err := readFile(t, file)
			if err != nil || len(got) != 2 || stats.Passed != 2 {
				t.Fatalf("got %d packets, %+v, %v; want 2", len(got), stats, err)
			}
			for i, p := range got {
				if p.From != netip.MustParseAddrPort(want[i]) || p.To.Port() != 62201 || string(p.Data) != "knock!" {
					t.Errorf("got %v to %v: %q", p.From, p.To, p.Data)
				}
			}
		})
	}
}

// TestFileWithoutKnocks: packets that a Sniffer would not pass are not returned from a file either, but counted.
func TestFileWithoutKnocks(t *testing.T) {
	changed := func(whole string, at int, to string) string { return whole[:2*at] + to + whole[2*at+len(to):] }
	for name, test := range map[string]struct {
		packet string
		count  func(Stats) uint64
	}{
		"another port": {changed(whole4, 22, "f2fa"), nil},
		"TCP":          {changed(whole4, 9, "06"), func(s Stats) uint64 { return s.Malformed }},
		"cut short":    {whole4[:len(whole4)-2], func(s Stats) uint64 { return s.Malformed }},
		"fragment":     {changed(whole4, 6, "2000"), func(s Stats) uint64 { return s.Fragment }},
		"options":      {changed(whole4, 0, "46"), func(s Stats) uint64 { return s.Options }},
		"extension":    {changed(whole6, 6, "00"), func(s Stats) uint64 { return s.Extension }},
		"loopback":     {changed(whole4, 12, "7f000001"), func(s Stats) uint64 { return s.BadSource }},
		"no IP":        {"50", nil},
		"nothing":      {"", nil},
	} {
		got, stats, err := readFile(t, pcap(t, 101, test.packet))
		if err != nil || len(got) != 0 || stats.Received != 1 || stats.Passed != 0 {
			t.Errorf("%s: got %d packets, %+v, %v", name, len(got), stats, err)
		}
		if test.count != nil && test.count(stats) != 1 {
			t.Errorf("%s: got %+v, want it counted as what it is", name, stats)
		}
	}
	long := Config{Ports: []uint16{62201}, MinLen: 7, MaxLen: 256}
	if f, err := OpenFile(bytes.NewReader(pcap(t, 101, whole4)), long); err != nil {
		t.Error(err)
	} else if _, _, err := f.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("too short for a knock: got %v", err)
	}
}

// TestFileThatIsNone: an unreadable file is an error that names the record.
func TestFileThatIsNone(t *testing.T) {
	good, ng := pcap(t, 1, macs+"0800"+whole4), pcapng(t, macs+"0800"+whole4)
	for name, test := range map[string]struct {
		file  []byte
		after int // packets
		want  string
	}{
		"empty":               {nil, 0, "neither a pcap nor a pcapng file"},
		"a text":              {[]byte("tcpdump: listening on any"), 0, "neither a pcap nor a pcapng file"},
		"cut in a header":     {good[:30], 0, "record 1: unexpected EOF"},
		"cut after a header":  {good[:40], 0, "record 1: unexpected EOF"},
		"cut in a record":     {good[:len(good)-1], 0, "record 1: unexpected EOF"},
		"cut in the second":   {append(bytes.Clone(good), good[24:50]...), 1, "record 2: unexpected EOF"},
		"pcapng, cut":         {ng[:len(ng)-20], 0, "record 1: unexpected EOF"},
		"a link of Bluetooth": {pcap(t, 201, whole4), 0, "record 1: link type 201"},
		"a record of gigabyte": {append(bytes.Clone(good[:24]), fromHex(t, "00000000000000000000004000000040")...), 0,
			"record 1: "},
	} {
		got, _, err := readFile(t, test.file)
		if err == nil || !strings.Contains(err.Error(), test.want) || len(got) != test.after {
			t.Errorf("%s: got %d packets and %v, want %q", name, len(got), err, test.want)
		}
	}
}

// TestFileThatWasCut: a candidate that was not captured whole is an error, because nothing can be decided about it.
// Reading continues after it, and other truncated packets do not matter.
func TestFileThatWasCut(t *testing.T) {
	plain := pcap(t, 1, macs+"0800"+whole4, macs+"0800"+whole4)
	whole := binary.LittleEndian.Uint32(plain[24+12:])
	order := binary.LittleEndian
	ip := fromHex(t, whole4)
	for name, file := range map[string][]byte{
		"pcap": slices.Concat(plain[:24+8], order.AppendUint32(order.AppendUint32(nil, 40), whole), plain[24+16:24+16+40],
			plain[24+16+whole:]),
		"pcapng": slices.Concat(ngHeader(order), ngRaw(order, 9, 0),
			ngCut(order, uint64(captured.UnixNano()), len(ip), ip[:32]),
			ngKnock(order, uint64(captured.UnixNano()), uint32(len(ip)), ip)),
	} {
		got, stats, err := readFile(t, file)
		if err != nil || len(got) != 1 || stats.Cut != 1 || stats.Received != 2 || stats.Malformed != 0 {
			t.Errorf("%s: got %d packets, %+v and %v", name, len(got), stats, err)
		}
	}
	other := pcap(t, 1, macs+"0800"+whole4)
	order.PutUint32(other[24+12:], whole+1)
	other[24+16+14+23]++ // another port
	if _, stats, err := readFile(t, other); err != nil || stats.Cut != 0 {
		t.Errorf("of no concern: got %+v and %v", stats, err)
	}
}

func FuzzFile(f *testing.F) {
	f.Add(pcap(f, 1, macs+"0800"+whole4, macs+"86dd"+whole6))
	f.Add(pcap(f, 276, "0800"+sll2+whole4))
	f.Add(pcapng(f, macs+"0800"+whole4, whole6))
	f.Add(slices.Concat(ngHeader(binary.BigEndian), ngRaw(binary.BigEndian, 0xc0, 0),
		ngKnock(binary.BigEndian, 0, 100, nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := OpenFile(bytes.NewReader(b), fileConfig)
		if err != nil {
			return
		}
		for n := 0; ; n++ {
			p, _, err := file.Read()
			if err != nil {
				return
			}
			if len(p.Data) < 1 || len(p.Data) > 256 || n > len(b) {
				t.Fatalf("packet %d of %d bytes: %d bytes", n, len(b), len(p.Data))
			}
		}
	})
}

// TestTags: IP is found behind one, two or three VLAN tags.
func TestTags(t *testing.T) {
	for tags := range 5 {
		frame := make([]byte, 12)
		for range tags {
			frame = append(frame, 0x81, 0, 0, 1)
		}
		frame = append(frame, 8, 0)
		frame = append(frame, fromHex(t, whole4)...)
		if got := carried(frame, 12, 14); (got != nil) != (tags <= 2) || got != nil && got[0] != 0x45 {
			t.Errorf("%d tags: got %x", tags, got)
		}
	}
}

// TestLengthsOfAFile: only packets of the lengths that the gateway accepts are returned.
func TestLengthsOfAFile(t *testing.T) {
	for _, test := range []struct {
		min, max int
		want     verdict
	}{{6, 6, passed}, {7, 10, notForUs}, {1, 5, notForUs}} {
		c := Config{Ports: []uint16{62201}, MinLen: test.min, MaxLen: test.max}
		f := &File{config: c, frames: unframer{longest: c.MaxLen}, decoder: newDecoder()}
		if _, v := f.judge(fromHex(t, whole4)); v != test.want {
			t.Errorf("between %d and %d: got verdict %d, want %d", test.min, test.max, v, test.want)
		}
	}
}

// TestRecordOfAnyLength: a record that claims a shorter original length than it holds is read in full.
func TestRecordOfAnyLength(t *testing.T) {
	data := []byte("packet")
	for length, want := range map[int]int{0: 6, 5: 6, 6: 6, 7: 7, -1: 6} {
		if got := (record{data: data, length: length}).whole(); len(got) != want || string(got[:6]) != "packet" {
			t.Errorf("length %d: got %q", length, got)
		}
	}
}

// TestGreatRecord: the length that a record claims does not make the reader allocate that much memory.
func TestGreatRecord(t *testing.T) {
	file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	file = binary.LittleEndian.AppendUint32(file, 1<<31-1) // the longest record
	file = binary.LittleEndian.AppendUint32(file, 1)       // Ethernet
	file = append(file, 0, 0, 0, 0, 0, 0, 0, 0)
	file = binary.LittleEndian.AppendUint32(file, 1<<30)
	file = binary.LittleEndian.AppendUint32(file, 1<<30)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f, err := OpenFile(bytes.NewReader(file), fileConfig)
	if err == nil {
		_, _, err = f.Read()
	}
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; err == nil || taken > 64<<20 {
		t.Errorf("got %v, and it took %d bytes", err, taken)
	}
}
