package check

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sallyport/keys/service"
)

// socketUnit is a unit of systemd that listens for a service.
type socketUnit struct {
	name    string
	service string // the unit that it starts
	program string // the name of the program; empty: unknown
	ports   []service.Service
}

// unitDirs are the directories of units; the first that has a unit wins (systemd.unit(5)).
var unitDirs = []string{
	"etc/systemd/system", "run/systemd/system", "run/systemd/generator",
	"usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system",
}

// socketUnits reads all units that listen on ports.
func socketUnits(root string) []socketUnit {
	var names []string
	for _, dir := range unitDirs {
		paths, err := filepath.Glob(filepath.Join(root, dir, "*.socket"))
		if err != nil {
			continue
		}
		for _, path := range paths {
			names = append(names, filepath.Base(path))
		}
	}
	slices.Sort(names)
	var units []socketUnit
	for _, name := range slices.Compact(names) {
		if u := readSocketUnit(root, name); len(u.ports) > 0 {
			units = append(units, u)
		}
	}
	return units
}

func readSocketUnit(root, name string) socketUnit {
	file := readUnit(root, name)
	base := strings.TrimSuffix(name, ".socket")
	u := socketUnit{name: name, service: base + ".service"}
	if accept := file.last("Accept"); accept == "yes" || accept == "true" || accept == "on" || accept == "1" {
		u.service = base + "@.service"
	} else if service := file.last("Service"); service != "" {
		u.service = service
	}
	for _, listen := range []struct {
		key   string
		proto service.Proto
	}{{"ListenStream", service.TCP}, {"ListenDatagram", service.UDP}} {
		for _, value := range file[listen.key] {
			if port, ok := listenPort(value); ok {
				u.ports = append(u.ports, service.Service{Proto: listen.proto, Port: port})
			}
		}
	}
	if command := strings.Fields(readUnit(root, u.service).last("ExecStart")); len(command) > 0 {
		u.program = filepath.Base(strings.TrimLeft(command[0], "@-:+!|"))
	}
	return u
}

// listenPort parses "22", "0.0.0.0:22" or "[::]:22".
func listenPort(value string) (uint16, bool) {
	if strings.HasPrefix(value, "vsock:") {
		return 0, false
	}
	port, err := strconv.ParseUint(value[strings.LastIndex(value, ":")+1:], 10, 16)
	return uint16(port), err == nil
}

// unitFile is the contents of a unit by key. An empty value resets the earlier ones.
type unitFile map[string][]string

func (f unitFile) last(key string) string {
	values := f[key]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// readUnit reads a unit and its drop-ins.
func readUnit(root, name string) unitFile {
	f := make(unitFile)
	for _, dir := range unitDirs {
		if f.read(filepath.Join(root, dir, name)) {
			break
		}
	}
	dropIns := make(map[string]string) // the path of each by its name
	for _, dir := range unitDirs {
		paths, err := filepath.Glob(filepath.Join(root, dir, name+".d", "*.conf"))
		if err != nil {
			continue
		}
		for _, path := range paths {
			if base := filepath.Base(path); dropIns[base] == "" {
				dropIns[base] = path
			}
		}
	}
	var order []string
	for base := range dropIns {
		order = append(order, base)
	}
	slices.Sort(order)
	for _, base := range order {
		f.read(dropIns[base])
	}
	return f
}

// read adds the contents of a file, and reports whether it exists.
func (f unitFile) read(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if key = strings.TrimSpace(key); !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, ";") {
			continue
		}
		if value = strings.TrimSpace(value); value == "" {
			f[key] = nil
			continue
		}
		f[key] = append(f[key], value)
	}
	return true
}

// unitOf returns the unit through which systemd holds a socket.
func unitOf(l listener, units []socketUnit) (socketUnit, bool) {
	if !slices.Contains(l.held, "systemd") {
		return socketUnit{}, false
	}
	i := slices.IndexFunc(units, func(u socketUnit) bool {
		return slices.Contains(u.ports, service.Service{Proto: l.Proto, Port: l.local.Port()})
	})
	if i < 0 {
		return socketUnit{}, false
	}
	return units[i], true
}

// startsSSH reports whether an ssh server answers on the unit's ports.
func (u socketUnit) startsSSH() bool {
	return u.name == "ssh.socket" || u.name == "sshd.socket" || slices.Contains(sshServers, u.program)
}
