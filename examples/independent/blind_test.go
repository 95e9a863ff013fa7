package main

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
)

// TestNoReceipts knocks on a server that sends no receipts (section 7): only
// that a port of every service accepts is success.
func TestNoReceipts(t *testing.T) {
	p := testProfile(t, 9)
	p.receipts = false
	token := encodeToken(p)
	open := func() int {
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() })
		return listener.Addr().(*net.TCPAddr).Port
	}
	one, two := open(), open()
	for _, c := range []struct {
		services string
		args     []string
		status   int
		output   string
	}{
		{fmt.Sprintf("tcp/%d", one), nil, exitDone, "granted"},
		{fmt.Sprintf("tcp/%d,tcp/%d", one, two), nil, exitDone, "granted"},
		{fmt.Sprintf("tcp/%d,tcp/9", one), nil, exitNoAnswer, ""},
		{fmt.Sprintf("tcp/%d,udp/53", one), nil, exitDone, "asked for tcp/"},
		{"unlisted", nil, exitDone, "asked for unlisted"},
		{fmt.Sprintf("tcp/%d", one), []string{"-close"}, exitDone, "asked for tcp/"},
	} {
		var stdout bytes.Buffer
		timeout := "20s" // for what ends by itself
		if c.status == exitNoAnswer {
			timeout = "700ms"
		}
		args := append([]string{"-token", "-", "-service", c.services, "-timeout", timeout}, c.args...)
		status := run(args, strings.NewReader(token), &stdout, &bytes.Buffer{})
		if status != c.status || !strings.HasPrefix(stdout.String(), c.output) || c.output == "" && stdout.Len() > 0 {
			t.Errorf("%s %s: exit status %d, output %q", c.services, c.args, status, &stdout)
		}
	}
}
