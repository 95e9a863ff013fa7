package replay

import "fmt"

// floors holds a stamp for each name of one kind (keys or topics), in memory and in slots of ten. Zero is
// no floor.
type floors struct {
	kind   byte
	index  map[[16]byte]int32
	list   arena[floor]
	slots  []int32 // the slot of each ten of the list
	vacant []int32 // places in the list without a name
}

func newFloors(kind byte) floors { return floors{kind: kind, index: make(map[[16]byte]int32)} }

// stampOf returns the floor of a name.
func (f *floors) stampOf(name [16]byte) int64 {
	if i, ok := f.index[name]; ok {
		return f.list.at(i).stamp
	}
	return 0
}

// known returns the place of a name while a journal is loaded. A new name gets a vacant place: the slot of its floor
// was written before its first nonce.
func (f *floors) known(name [16]byte) (int32, error) {
	if i, ok := f.index[name]; ok {
		return i, nil
	}
	if len(f.vacant) == 0 {
		return 0, fmt.Errorf("%w: a spent nonce whose key has no floor", errDamaged)
	}
	return f.settle(name), nil
}

// settle puts a name into a vacant place.
func (f *floors) settle(name [16]byte) int32 {
	i := f.vacant[len(f.vacant)-1]
	f.vacant = f.vacant[:len(f.vacant)-1]
	*f.list.at(i) = floor{name: name}
	f.index[name] = i
	return i
}

// full reports whether the number of places has reached its limit.
func (f *floors) full() bool { return len(f.slots)*perSlot >= maxNames }

// append adds the ten vacant places of a slot, the first of them on top.
func (f *floors) append(slot int32) {
	first := int32(len(f.slots) * perSlot)
	f.slots = append(f.slots, slot)
	for i := int32(perSlot) - 1; i >= 0; i-- {
		*f.list.at(first + i) = floor{}
		f.vacant = append(f.vacant, first+i)
	}
}

// raise puts the floor of a place at a later stamp: first in the file, then in memory.
func (f *floors) raise(s *store, i int32, stamp int64) error {
	at := f.list.at(i)
	old := at.stamp
	at.stamp = stamp
	if err := f.write(s, i/perSlot); err != nil {
		at.stamp = old
		return err
	}
	return nil
}

func (f *floors) write(s *store, group int32) error {
	clear(s.buf[:])
	s.buf[4] = f.kind
	for i := range int32(perSlot) {
		f.list.at(group*perSlot + i).encode(s.buf[16+i*floorSize:])
	}
	sign(s.buf[:], 0)
	return s.write(f.slots[group])
}

// load takes over the ten floors of a slot.
func (f *floors) load(slot int32, b []byte) error {
	if !signed(b, 0) {
		return fmt.Errorf("%w: floors do not verify", errDamaged)
	}
	if f.full() {
		return fmt.Errorf("%w: more than %d names", errDamaged, maxNames)
	}
	first, vacant := int32(len(f.slots)*perSlot), f.vacant
	f.append(slot)
	f.vacant = vacant
	for i := range int32(perSlot) {
		f.place(first+i, decodeFloor(b[16+i*floorSize:]))
	}
	return nil
}

// place takes over one floor. A name without a floor is left out: its nonces will name it again.
func (f *floors) place(i int32, at floor) {
	if at.stamp == 0 {
		f.vacant = append(f.vacant, i)
		return
	}
	*f.list.at(i) = at
	f.index[at.name] = i
}
