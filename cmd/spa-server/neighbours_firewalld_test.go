package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"sallyport/spa/lab"
)

// firewalld is the real one, on its own message bus, with its files in a directory of the test.
type firewalld struct {
	shell
	daemon *exec.Cmd
	log    string
}

// busConfig configures a message bus on which everything is allowed: only the test uses it.
const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
`

// bareZone is the zone of all interfaces, without the ssh that firewalld allows by default.
const bareZone = `<?xml version="1.0" encoding="utf-8"?>
<zone><short>Public</short></zone>
`

func newFirewalld(g *gateway) tool {
	g.t.Helper()
	dir, err := os.MkdirTemp("", "firewalld") // not a test directory: the path of a socket must be short
	lab.Must(g.t, err)
	g.t.Cleanup(func() { os.RemoveAll(dir) })
	bus := filepath.Join(dir, "bus")
	for path, text := range map[string]string{
		"bus.conf":             fmt.Sprintf(busConfig, bus),
		"run/empty":            "",
		"etc/firewalld.conf":   "DefaultZone=public\n",
		"etc/zones/public.xml": bareZone,
	} {
		path = filepath.Join(dir, path)
		lab.Must(g.t, os.MkdirAll(filepath.Dir(path), 0o755))
		lab.Must(g.t, os.WriteFile(path, []byte(text), 0o644))
	}
	f := &firewalld{log: filepath.Join(dir, "log"), shell: shell{
		g:     g,
		files: map[string]string{"/etc/firewalld": filepath.Join(dir, "etc"), "/run": filepath.Join(dir, "run")},
		env:   []string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + bus},
	}}
	f.launch("dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile", "--nosyslog")
	lab.Eventually(g.t, "the message bus to listen", func() bool {
		conn, err := net.Dial("unix", bus)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return f
}

// launch starts a program that ends with the gateway.
func (f *firewalld) launch(program string, args ...string) *exec.Cmd {
	f.g.t.Helper()
	log := lab.Value(os.OpenFile(f.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))(f.g.t)
	defer log.Close()
	cmd := f.command(program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	lab.Must(f.g.t, f.g.host.Start(cmd))
	return cmd
}

func (f *firewalld) begin() {
	f.g.t.Helper()
	f.daemon = f.launch("firewalld", "--nofork", "--nopid", "--log-target", "console")
	f.answers()
}

// answers waits until firewalld has done everything that was requested.
func (f *firewalld) answers() {
	f.g.t.Helper()
	lab.Eventually(f.g.t, "firewalld to answer", func() bool {
		_, err := f.try("", "firewall-cmd", "--state")
		return err == nil
	})
}

// do makes firewalld do something, and waits longer for it than firewall-cmd does.
func (f *firewalld) do(args ...string) {
	f.g.t.Helper()
	out, err := f.try("", "firewall-cmd", args...)
	switch {
	case err != nil && strings.Contains(out, "Did not receive a reply"):
		f.answers()
	case err != nil:
		f.g.t.Fatalf("firewall-cmd %v: %v\n%s", args, err, out)
	}
}

func (f *firewalld) allow() {
	f.g.t.Helper()
	f.do("--add-port=22/tcp")
	f.do("--permanent", "--add-port=22/tcp")
}

func (f *firewalld) reload() { f.g.t.Helper(); f.do("--reload") }

func (f *firewalld) end() {
	f.g.t.Helper()
	lab.Must(f.g.t, f.daemon.Process.Signal(syscall.SIGTERM))
	if err := f.daemon.Wait(); err != nil {
		said, _ := os.ReadFile(f.log)
		f.g.t.Fatalf("firewalld ended: %v\n%s", err, said)
	}
}
