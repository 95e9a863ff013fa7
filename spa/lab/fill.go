package lab

import (
	"net/netip"
	"reflect"
	"time"
)

// Fill puts the text into every string, and every zone of an address, in a value, at any depth: it sets pointers, and
// gives slices two elements and maps one. It sets times too, and leaves numbers and booleans unchanged.
func Fill(v any, text string) { fill(reflect.ValueOf(v).Elem(), text) }

func fill(v reflect.Value, text string) {
	switch at := v.Addr().Interface().(type) {
	case *netip.Addr:
		*at = netip.MustParseAddr("fe80::1").WithZone(text)
		return
	case *netip.AddrPort:
		*at = netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(text), 1)
		return
	case *netip.Prefix:
		*at = netip.MustParsePrefix("2001:db8::/32") // which has no room for a text
		return
	case *time.Time:
		*at = time.Unix(9, 0)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), text)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), text)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), text)
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, text)
		fill(value, text)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	}
}
