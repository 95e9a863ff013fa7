package control

import (
	"net/netip"
	"reflect"

	"sallyport/keys/quote"
)

// clean makes every text of a reply printable: root reads what a server sends that an attacker may
// control. Only an error may have several lines.
func (r *Reply) clean() {
	text := quote.Lines(r.Error)
	clean(reflect.ValueOf(r).Elem())
	r.Error = text
}

// clean makes every text in a value printable.
func clean(v reflect.Value) {
	switch at := v.Addr().Interface().(type) {
	case *netip.Addr:
		*at = cleanAddr(*at)
		return
	case *netip.AddrPort:
		*at = netip.AddrPortFrom(cleanAddr(at.Addr()), at.Port())
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(quote.Printable(v.String()))
	case reflect.Pointer:
		if !v.IsNil() {
			clean(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				clean(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			clean(v.Index(i))
		}
	case reflect.Map: // its keys are all that may be a text
		for _, key := range v.MapKeys() {
			next, value := reflect.New(key.Type()).Elem(), v.MapIndex(key)
			next.Set(key)
			clean(next)
			v.SetMapIndex(key, reflect.Value{})
			v.SetMapIndex(next, value)
		}
	}
}

// cleanAddr cleans the zone, which may be any text.
func cleanAddr(a netip.Addr) netip.Addr { return a.WithZone(quote.Printable(a.Zone())) }
