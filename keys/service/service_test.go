package service

import (
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for s, want := range map[string]Ports{
		"tcp/22":          {TCP, 22, 22},
		"udp/1":           {UDP, 1, 1},
		"tcp/60000-60010": {TCP, 60000, 60010},
		"udp/1-65535":     {UDP, 1, 65535},
	} {
		got, err := ParsePorts(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("ParsePorts(%q): got %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "22", "ssh", "tcp", "tcp/", "/22", "tcp/0", "tcp/65536", "tcp/+22", "tcp/022", "tcp/ 22", "tcp/22 ", "TCP/22",
		"sctp/22", "icmp/1", "tcp/22-", "tcp/-22", "tcp/22-22", "tcp/23-22", "tcp/0-22", "tcp/1-65536", "tcp/1-2-3",
		"tcp/22/23",
		"tcp/0x16", "tcp/2_2", "tcp/٢٢",
	} {
		if got, err := ParsePorts(s); err == nil || got != (Ports{}) {
			t.Errorf("ParsePorts(%q): got %v, %v; want an error", s, got, err)
		}
	}
}

func TestPortsContains(t *testing.T) {
	p := Ports{TCP, 100, 110}
	for _, tt := range []struct {
		proto Proto
		port  uint16
		want  bool
	}{
		{TCP, 99, false}, {TCP, 100, true}, {TCP, 105, true}, {TCP, 110, true}, {TCP, 111, false}, {UDP, 105, false},
	} {
		if got := p.Contains(tt.proto, tt.port); got != tt.want {
			t.Errorf("%v contains %v/%d: got %v, want %v", p, tt.proto, tt.port, got, tt.want)
		}
	}
}

func TestParseService(t *testing.T) {
	for s, want := range map[string]Service{
		"ssh":      {Name: "ssh"},
		"tcp":      {Name: "tcp"},
		"0-a":      {Name: "0-a"},
		"tcp/8443": {Proto: TCP, Port: 8443},
		"udp/53":   {Proto: UDP, Port: 53},
	} {
		got, err := ParseService(s)
		if err != nil || got != want || got.String() != s {
			t.Errorf("ParseService(%q): got %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "SSH", "-a", "a_b", "ssh ", strings.Repeat("a", 33), "tcp/1-2",
		"tcp/0", "tcp/", "ssh/22"} {
		if got, err := ParseService(s); err == nil || got != (Service{}) {
			t.Errorf("ParseService(%q): got %v, %v; want an error", s, got, err)
		}
	}
}

func TestProtoString(t *testing.T) {
	for p, want := range map[Proto]string{TCP: "tcp", UDP: "udp", 1: "proto-1"} {
		if got := p.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"tcp/22", "udp/60000-60010", "tcp/022", "tcp/22-22", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePorts(s); err == nil && p.String() != s {
			t.Errorf("%q prints back as %q", s, p)
		}
	})
}

func FuzzParseService(f *testing.F) {
	for _, s := range []string{"ssh", "tcp/22", "udp/53", "a-b", "tcp/1-2", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseService(s)
		if err == nil && v.String() != s {
			t.Errorf("%q prints back as %q", s, v)
		}
		if err == nil && !v.Valid() {
			t.Errorf("%q is parsed but cannot be asked for", s)
		}
	})
}
