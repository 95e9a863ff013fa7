//go:build unix

package client

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"sallyport/spa/lab"
)

// getent replaces the system's program of this name by a script.
func getent(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	lab.Must(t, os.WriteFile(filepath.Join(dir, "getent"), []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// resolveNothing sets this process's resolver to one that answers every question with a code.
func resolveNothing(t *testing.T, code dnsmessage.RCode) {
	t.Helper()
	resolve4(t, &code)
	dial := net.DefaultResolver.Dial
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: dial}
	unknown = code
	t.Cleanup(func() { unknown = 0 })
}

// TestGetent: modules of nsswitch may know names that the resolver does not. They are only asked then.
func TestGetent(t *testing.T) {
	readConfiguration(t)
	const knows = `test "$1" = ahosts && test $# = 2 && test "$2" = printer.local. && {
		echo "192.0.2.7       STREAM printer.local"
		echo "192.0.2.7       DGRAM"
		echo "2001:db8::7     STREAM"
		exit
	}
	exit 2`
	for name, c := range map[string]struct {
		host, script string
		code         dnsmessage.RCode
		want         []netip.Addr
	}{
		"known": {"printer.local.", knows, dnsmessage.RCodeNameError,
			[]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}},
		"not known either": {"other.local.", knows, dnsmessage.RCodeNameError, nil},
		"DNS does not say": {"printer.local.", knows, dnsmessage.RCodeServerFailure, nil},
		"it says nothing":  {"printer.local.", "exit 0", dnsmessage.RCodeNameError, nil},
		"it says nonsense": {"printer.local.", "echo nonsense; echo", dnsmessage.RCodeNameError, nil},
	} {
		t.Run(name, func(t *testing.T) {
			resolveNothing(t, c.code)
			getent(t, c.script)
			got, err := system{}.Lookup(t.Context(), c.host)
			if !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) {
				t.Errorf("got %v, %v; want %v", got, err, c.want)
			}
			if _, ok := errors.AsType[*net.DNSError](err); c.want == nil && !ok {
				t.Errorf("got %v, want what the resolver said", err)
			}
		})
	}
}

// A name is never an option of getent, and a hanging program is not waited for.
func TestGetentIsBounded(t *testing.T) {
	getent(t, "echo 192.0.2.7")
	for _, host := range []string{"", "-", "--help", "-s files"} {
		if got := Getent(t.Context(), host); got != nil {
			t.Errorf("%q: got %v", host, got)
		}
	}
	getent(t, "exec sleep 1000")
	ended := make(chan []netip.Addr, 1)
	go func() { ended <- Getent(t.Context(), "gw") }()
	select {
	case got := <-ended:
		if got != nil {
			t.Errorf("got %v", got)
		}
	case <-time.After(lab.Patience):
		t.Error("it is waited for")
	}
	t.Setenv("PATH", t.TempDir())
	if got := Getent(t.Context(), "gw"); got != nil {
		t.Errorf("without the program: %v", got)
	}
}

// The output of the system's own getent is parsed.
func TestRealGetent(t *testing.T) {
	lab.NeedProgram(t, "getent", "apt-get install libc-bin")
	if got := Getent(t.Context(), "127.0.0.1"); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("127.0.0.1")}) {
		t.Errorf("got %v", got)
	}
}
