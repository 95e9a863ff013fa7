package server

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/spa"
	"sallyport/spa/audit"
	"sallyport/spa/config"
	"sallyport/spa/lab"
)

// TestEverySettingIsCompared: a reload notices a change of any setting: it applies it, or reports that it needs a
// restart. It would silently ignore a key that nobody thought of.
func TestEverySettingIsCompared(t *testing.T) {
	base := func() *config.Config {
		c := config.Default("/etc/spa")
		c.Services = []config.Service{config.NewService("ssh")}
		return &c
	}
	leaves(reflect.TypeFor[config.Config](), nil, func(path []int, name string) {
		if name == "Dir" {
			return // the files' directory: another directory is another server
		}
		c := base()
		field := reflect.ValueOf(c).Elem().FieldByIndex(path)
		alter(t, field, name)
		if n := len(changed(restartSettings, base(), c)) + len(changed(liveSettings, base(), c)) +
			len(changedServices(base(), c)); n != 1 {
			t.Errorf("%s: %d changed keys are reported, want 1", name, n)
		}
	})
	leaves(reflect.TypeFor[config.Service](), nil, func(path []int, name string) {
		c := base()
		alter(t, reflect.ValueOf(&c.Services[0]).Elem().FieldByIndex(path), name)
		if got := changedServices(base(), c); len(got) == 0 {
			t.Errorf("service: %s: no change is reported", name)
		}
	})
}

// leaves calls do with each field that is not a struct of package config.
func leaves(typ reflect.Type, path []int, do func(path []int, name string)) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		if !f.IsExported() {
			continue // not a setting: no key sets it
		}
		at := append(slices.Clone(path), i)
		if f.Type.Kind() == reflect.Struct && f.Type.PkgPath() == typ.PkgPath() {
			leaves(f.Type, at, do)
			continue
		}
		do(at, f.Name)
	}
}

// alter gives a field another value.
func alter(t *testing.T, v reflect.Value, name string) {
	t.Helper()
	switch x := v.Addr().Interface().(type) {
	case *string:
		*x += "other"
	case *bool:
		*x = !*x
	case *int:
		*x++
	case *uint32:
		*x++
	case *time.Duration:
		*x++
	case *keys.ServerID:
		*x = keys.NewServerID()
	case *keys.FleetID:
		*x = keys.NewFleetID()
	case *[]string:
		*x = []string{"other"}
	case *[]config.KnockPort:
		*x = []config.KnockPort{{Port: 1}}
	case *[]config.Service:
		*x = nil
	case *[]service.Ports:
		*x = []service.Ports{{Proto: service.TCP, Low: 1, High: 1}}
	case *[]netip.Addr:
		*x = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	case *[]netip.AddrPort:
		*x = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:22")}
	case *[]service.Span:
		*x = make([]service.Span, 1)
	default:
		t.Fatalf("%s is of type %s, which this test does not know yet", name, v.Type())
	}
}

// TestChangedClients: Changes returns the clients that are new, gone or changed.
func TestChangedClients(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, allow ...string) {
		c := &keys.Client{Name: name, ID: keys.NewID(), Key: keys.NewKey(), Allow: allow}
		lab.Must(t, keys.WriteClient(dir, c, true))
	}
	write("alice", "ssh")
	write("bob", "ssh")
	before, problems := keys.LoadRegistry(dir)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	write("carol", "ssh")
	bob := lab.Value(keys.ReadClient(dir + "/bob.toml"))(t)
	narrower := *bob
	narrower.Allow = []string{"web"}
	lab.Must(t, keys.WriteClient(dir, &narrower, false))
	after, problems := before.Fresh()
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	changes := before.Changes(after)
	if len(changes) != 2 || changes[0].Before.Name != "bob" || changes[0].After.Allow[0] != "web" ||
		changes[1].Before != nil || changes[1].After.Name != "carol" {
		t.Errorf("got %+v", changes)
	}
	if back := after.Changes(before); len(back) != 2 || back[1].Before.Name != "carol" ||
		back[1].After != nil {
		t.Errorf("the other way: got %+v", back)
	}
}

// TestAdoptBothOrNeither: if the firewall refuses, the journal is unchanged too.
func TestAdoptBothOrNeither(t *testing.T) {
	s, sender := newLine(t)
	refused := *s.config
	refused.Window = time.Second
	refused.Firewall.TrustedInterfaces = []string{"a-name-that-no-interface-has"}
	if err := s.adopt(t.Context(), files{config: &refused, clients: s.clients}); err == nil {
		t.Fatal("the firewall took over what it cannot do")
	}
	late, err := spa.Seal(spa.Request{ID: spa.NewRequestID(), Type: spa.TypeOpen, Time: time.Now().Add(-20 * time.Second),
		Services: []service.Service{{Name: "ssh"}}}, sender)
	lab.Must(t, err)
	if event := s.handle(t.Context(), arriving(late)); event.Verdict != audit.Granted {
		t.Errorf("20 s behind: %v (%v), want it granted by the window of 30 s", event.Verdict, event.Err)
	}
}
