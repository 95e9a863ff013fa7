package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sallyport/spa/lab"
)

// ngBlock returns a block of a pcapng file in either byte order.
func ngBlock(order binary.AppendByteOrder, kind uint32, body ...byte) []byte {
	b := order.AppendUint32(order.AppendUint32(nil, kind), uint32(len(body)+ngFrame))
	return order.AppendUint32(append(b, body...), uint32(len(body)+ngFrame))
}

func ngHeader(order binary.AppendByteOrder) []byte {
	body := order.AppendUint16(order.AppendUint32(nil, ngByteOrder), 1)
	return ngBlock(order, ngSection, append(body, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255)...)
}

// ngRaw describes a raw IP interface whose timestamps have a resolution and an offset in seconds. It has other options
// of the same sizes (checksum length and speed), and an end of options.
func ngRaw(order binary.AppendByteOrder, resolution byte, offset uint64) []byte {
	body := append(order.AppendUint16(nil, 101), 0, 0, 0, 0, 0, 0)
	body = append(order.AppendUint16(order.AppendUint16(body, ngResolution), 1), resolution, 0, 0, 0)
	body = order.AppendUint64(order.AppendUint16(order.AppendUint16(body, ngOffset), 8), offset)
	body = append(order.AppendUint16(order.AppendUint16(body, 13), 1), 4, 0, 0, 0)
	body = order.AppendUint64(order.AppendUint16(order.AppendUint16(body, 8), 8), 1e9)
	return ngBlock(order, ngInterface, append(body, 0, 0, 0, 0)...)
}

// ngKnock returns a packet block with the packet length that its header states, at a given time.
func ngKnock(order binary.AppendByteOrder, at uint64, size uint32, data []byte) []byte {
	body := order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 0), uint32(at>>32)), uint32(at))
	body = append(order.AppendUint32(order.AppendUint32(body, size), size), data...)
	return ngBlock(order, ngPacket, append(body, make([]byte, -len(data)&3)...)...)
}

// ngCut returns a packet of which only the beginning was captured.
func ngCut(order binary.AppendByteOrder, at uint64, whole int, data []byte) []byte {
	b := ngKnock(order, at, uint32(len(data)), data)
	copy(b[8+16:], order.AppendUint32(nil, uint32(whole)))
	return b
}

// TestPcapngTimes: every resolution, both byte orders, and a second section.
func TestPcapngTimes(t *testing.T) {
	ip := fromHex(t, whole4)
	size, seconds := uint32(len(ip)), uint64(captured.Unix())
	for name, test := range map[string]struct {
		resolution byte
		offset, at uint64
	}{
		"seconds":               {0, 0, seconds},
		"milliseconds":          {3, 0, seconds * 1000},
		"nanoseconds":           {9, 0, uint64(captured.UnixNano())},
		"an offset":             {9, seconds, 5000},
		"a power of two":        {0x80 + 20, 0, seconds << 20},
		"the finest":            {19, seconds, 50_000_000_000_000},
		"the finest, of two":    {0xbf, seconds, 1 << 62},
		"an offset that is off": {6, ^uint64(0), (seconds + 1) * 1e6},
	} {
		var file []byte
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			unknown := ngBlock(order, 5, make([]byte, 3*maxBlock)...)
			file = append(file, bytes.Join([][]byte{ngHeader(order), ngRaw(order, test.resolution, test.offset), unknown,
				ngKnock(order, test.at, size, ip)}, nil)...)
		}
		f := lab.Value(OpenFile(bytes.NewReader(file), fileConfig))(t)
		for range 2 {
			_, at, err := f.Read()
			if err != nil || at.Sub(captured).Abs() > time.Second {
				t.Errorf("%s: got %v and %v, want %v", name, at, err, captured)
			}
		}
	}
}

// TestPcapngInterfaces: a packet has the time resolution of the interface that it names, in both types of block.
func TestPcapngInterfaces(t *testing.T) {
	ip := fromHex(t, whole4)
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, kind := range []uint32{ngPacket, ngOldPacket} {
			knock := ngKnock(order, uint64(captured.Unix()), uint32(len(ip)), ip)
			copy(knock, order.AppendUint32(nil, kind))
			copy(knock[8:], order.AppendUint32(nil, 1))
			if kind == ngOldPacket { // two bytes; the others count drops
				copy(knock[8:], order.AppendUint16(order.AppendUint16(nil, 1), 7))
			}
			file := bytes.Join([][]byte{ngHeader(order), ngRaw(order, 9, 0), ngRaw(order, 0, 0), knock}, nil)
			f := lab.Value(OpenFile(bytes.NewReader(file), fileConfig))(t)
			if _, at, err := f.Read(); err != nil || at.Sub(captured).Abs() > time.Second {
				t.Errorf("block type %d, %v: got %v and %v, want %v", kind, order, at, err, captured)
			}
		}
	}
}

// TestPcapngOptions: an option of an impossible size is ignored.
func TestPcapngOptions(t *testing.T) {
	order := binary.LittleEndian
	ip := fromHex(t, whole4)
	odd := append(order.AppendUint16(nil, 101), 0, 0, 0, 0, 0, 0, ngResolution, 0, 0, 0, ngOffset, 0, 4, 0, 1, 2, 3, 4)
	file := bytes.Join([][]byte{ngHeader(order), ngBlock(order, ngInterface, odd...),
		ngKnock(order, uint64(captured.UnixMicro()), uint32(len(ip)), ip)}, nil)
	f := lab.Value(OpenFile(bytes.NewReader(file), fileConfig))(t)
	if _, at, err := f.Read(); err != nil || at.Sub(captured).Abs() > time.Second {
		t.Errorf("got %v and %v, want %v", at, err, captured)
	}
}

// TestHostilePcapng: whatever a file claims, it is refused with an error, and takes no more memory than it has bytes.
func TestHostilePcapng(t *testing.T) {
	order := binary.LittleEndian
	ip := fromHex(t, whole4)
	head, raw, now := ngHeader(order), ngRaw(order, 9, 0), uint64(captured.UnixNano())
	good := ngKnock(order, now, uint32(len(ip)), ip)
	other := bytes.Clone(good)
	order.PutUint32(other[len(other)-4:], 12)
	for name, test := range map[string]struct {
		blocks [][]byte
		want   string
	}{
		"no second has units": {[][]byte{head, ngRaw(order, 0xc0, 0), good}, "unknown time resolution"},
		"too many units":      {[][]byte{head, ngRaw(order, 20, 0), good}, "unknown time resolution"},
		"far too many units":  {[][]byte{head, ngRaw(order, 64, 0), good}, "unknown time resolution"},
		"a packet of 2 GB":    {[][]byte{head, raw, ngKnock(order, now, 1<<31-1, ip)}, "too short for its contents"},
		"a block of 4 GB": {[][]byte{head, raw, order.AppendUint32([]byte{6, 0, 0, 0}, 1<<32-4)},
			"a block of 4294967292 bytes"},
		"a block of odd size": {[][]byte{head, order.AppendUint32([]byte{9, 0, 0, 0}, 13)}, "a block of 13 bytes"},
		"no room for itself":  {[][]byte{head, order.AppendUint32([]byte{9, 0, 0, 0}, 8)}, "a block of 8 bytes"},
		"two lengths":         {[][]byte{head, raw, other}, "whose end says 12"},
		"a short packet":      {[][]byte{head, raw, ngBlock(order, ngPacket, 0, 0, 0, 0)}, "too short for its contents"},
		"a short interface":   {[][]byte{head, ngBlock(order, ngInterface, 1, 0, 0, 0)}, "too short for its contents"},
		"a long option": {[][]byte{head, ngBlock(order, ngInterface, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 255, 255)},
			"too short for its contents"},
		"no interface":         {[][]byte{head, good}, "interface 0 has no description"},
		"of another section":   {[][]byte{head, raw, head, good}, "interface 0 has no description"},
		"no byte order":        {[][]byte{ngBlock(order, ngSection, make([]byte, 16)...)}, "without a valid byte order"},
		"version 2":            {[][]byte{ngBlock(order, ngSection, 0x4d, 0x3c, 0x2b, 0x1a, 2, 0, 0, 0)}, "version 2"},
		"no time":              {[][]byte{head, raw, ngBlock(order, ngSimple, make([]byte, 8)...)}, "it has no time"},
		"the year 292 billion": {[][]byte{head, ngRaw(order, 9, 1<<62), good}, "an impossible time"},
		"before all time":      {[][]byte{head, ngRaw(order, 9, 1<<63), good}, "an impossible time"},
	} {
		got, _, err := readFile(t, bytes.Join(test.blocks, nil))
		if err == nil || !strings.Contains(err.Error(), test.want) || len(got) != 0 {
			t.Errorf("%s: got %d packets and %v, want %q", name, len(got), err, test.want)
		}
	}
}

// TestPcapngCutAnywhere: a file may end only between two blocks.
func TestPcapngCutAnywhere(t *testing.T) {
	order := binary.LittleEndian
	ip := fromHex(t, whole4)
	head, raw, skipped := ngHeader(order), ngRaw(order, 9, 0), ngBlock(order, 5, make([]byte, 16)...)
	whole := bytes.Join([][]byte{head, raw, skipped, ngKnock(order, uint64(captured.UnixNano()), uint32(len(ip)), ip)},
		nil)
	ends := map[int]bool{len(head): true, len(head) + len(raw): true, len(head) + len(raw) + len(skipped): true,
		len(whole): true}
	for n := 4; n <= len(whole); n++ {
		if _, _, err := readFile(t, whole[:n]); (err == nil) != ends[n] {
			t.Errorf("cut after %d of %d bytes: got %v", n, len(whole), err)
		}
	}
}

// TestPcapngMemory: repeated names, options and secrets of a file are not collected.
func TestPcapngMemory(t *testing.T) {
	order := binary.LittleEndian
	ip := fromHex(t, whole4)
	names := append(order.AppendUint16(order.AppendUint16(nil, 1), 65532), make([]byte, 65532)...) // 65,528 empty names
	options := bytes.Repeat([]byte{1, 0, 0, 0}, maxRecord/4)                                       // empty comments
	secrets := append(order.AppendUint32([]byte{1, 2, 3, 4}, maxRecord), make([]byte, maxRecord)...)
	knock := ngKnock(order, uint64(captured.UnixNano()), uint32(len(ip)),
		slices.Concat(ip, make([]byte, -len(ip)&3), options))
	for name, block := range map[string][]byte{
		"names":   ngBlock(order, 4, append(bytes.Repeat(names, 4), 0, 0, 0, 0)...),
		"options": knock,
		"secrets": ngBlock(order, 10, secrets...),
		"links":   ngBlock(order, ngInterface, append([]byte{101, 0, 0, 0, 0, 0, 0, 0}, options...)...),
	} {
		const blocks = 64
		file := slices.Concat(ngHeader(order), ngRaw(order, 9, 0), bytes.Repeat(block, blocks))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f, err := OpenFile(bytes.NewReader(file), fileConfig)
		for err == nil {
			_, _, err = f.Read()
		}
		runtime.ReadMemStats(&after)
		if taken := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, io.EOF) || taken > uint64(len(file))/4 {
			t.Errorf("%s: got %v, and a file of %d bytes took %d bytes", name, err, len(file), taken)
		}
	}
}

// TestPcapngWithAWrongByte: no single byte makes the reader panic, or take more than the file is worth.
func TestPcapngWithAWrongByte(t *testing.T) {
	ip := fromHex(t, whole4)
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		good := bytes.Join([][]byte{ngHeader(order), ngRaw(order, 9, 0), ngBlock(order, 5, make([]byte, 16)...),
			ngKnock(order, uint64(captured.UnixNano()), uint32(len(ip)), ip)}, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		files := 0
		for i := range good {
			for bit := range 8 {
				bad := bytes.Clone(good)
				bad[i] ^= 1 << bit
				files++
				f, err := OpenFile(bytes.NewReader(bad), fileConfig)
				for err == nil {
					_, _, err = f.Read()
				}
			}
		}
		runtime.ReadMemStats(&after)
		if taken := (after.TotalAlloc - before.TotalAlloc) / uint64(files); taken > 2*maxBlock {
			t.Errorf("%v: a file of %d bytes took %d bytes on average", order, len(good), taken)
		}
	}
}
