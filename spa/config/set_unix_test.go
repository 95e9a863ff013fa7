//go:build unix

package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"sallyport/keys/place"
	"sallyport/spa/lab"
)

// samples has a value for each key of server.toml, and what else the key needs.
var samples = map[string][]string{
	"name":                        {"office-2"},
	"address":                     {"[2001:db8::1]:443"},
	"server_id":                   {serverID},
	"version":                     {"1"},
	"knock_ports":                 {"62201,443"},
	"window":                      {"20s"},
	"receipts":                    {"false"},
	"state":                       {"/var/lib/spa"},
	"zone":                        {"Europe/Berlin"},
	"capture.mode":                {"udp"},
	"capture.interfaces":          {"eth0,wg0"},
	"capture.browser":             {"true"},
	"capture.gate":                {"xdp"},
	"firewall.backend":            {"nftables"},
	"firewall.mode":               {"admit", "firewall.admit.table=inet filter", "firewall.admit.set4=spa4"},
	"firewall.closed":             {"reject"},
	"firewall.persist":            {"file"},
	"firewall.trusted_interfaces": {"br-lan"},
	"firewall.tproxy":             {"true"},
	"firewall.mark":               {"0x20000000"},
	"firewall.admit.table":        {"ip filter", "firewall.mode=admit", "firewall.admit.set4=spa4"},
	"firewall.admit.set4":         {"s4", "firewall.mode=admit", "firewall.admit.table=ip filter"},
	"firewall.admit.set6":         {"s6", "firewall.mode=admit", "firewall.admit.table=ip6 filter"},
	"audit.file":                  {"journal"},
	"metrics.listen":              {"127.0.0.1:9620"},
	"metrics.clients":             {"true", "metrics.listen=unix:/run/spa/metrics.sock"},
	"limits.live_nonces":          {"512"},
	"limits.grants":               {"8"},
	"limits.grants_per_hour":      {"100_000"},
	"fleet.id":                    {fleetID, "fleet.office=" + officeKey},
	"fleet.office":                {officeKey, "fleet.id=" + fleetID},
	"fleet.gateway":               {"web7", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.bundle":                {"/var/lib/agent/web7", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.taken":                 {"/run/spa-share/fleet.taken", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.local_clients":         {"true", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.share":                 {"/run/spa-share/share.sock", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.standalone":            {"local", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"fleet.max_age":               {"24h", "fleet.id=" + fleetID, "fleet.office=" + officeKey},
	"service.web.ports":           {"tcp/80,tcp/443"},
	"service.web.for":             {"1m", "service.web.ports=tcp/80"},
	"service.web.max_for":         {"1h", "service.web.ports=tcp/80"},
	"service.web.addresses":       {"198.51.100.5,2001:db8::5", "service.web.ports=tcp/80"},
	"service.web.forward":         {"198.51.100.5:22,[2001:db8::5]:22", "service.web.ports=tcp/80"},
	"service.web.masquerade":      {"true", "service.web.ports=tcp/80", "service.web.forward=198.51.100.5:22"},
	"service.web.on_expiry":       {"cut", "service.web.ports=tcp/80"},
	"service.web.once":            {"true", "service.web.ports=tcp/80"},
	"service.web.run":             {"/usr/bin/logger,a knock", "service.web.user=nobody"},
	"service.web.run_after":       {"/usr/bin/logger", "service.web.user=nobody"},
	"service.web.user":            {"nobody", "service.web.run=/usr/bin/logger"},
	"service.web.timeout":         {"5m", "service.web.run=/usr/bin/logger", "service.web.user=nobody"},
	"service.web.when":            {"mon-fri 08:00-18:00", "service.web.ports=tcp/80"},
}

func whatever(*Change) error { return nil }

// initial writes the file that init writes.
func initial(t *testing.T) (dir, path, text string) {
	t.Helper()
	dir = t.TempDir()
	lab.Must(t, Create(dir, created(t, dir)))
	path = filepath.Join(dir, FileName)
	return dir, path, string(lab.Value(os.ReadFile(path))(t))
}

// comments returns the lines of a file that are comments.
func comments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// TestEveryKeyCanBeSet: each key of server.toml can be set, set again without effect, and removed; comments stay.
func TestEveryKeyCanBeSet(t *testing.T) {
	for _, key := range Keys("web") {
		sample, ok := samples[key]
		if !ok {
			t.Errorf("samples has no value for %s", key)
			continue
		}
		t.Run(key, func(t *testing.T) {
			testSet(t, append([]string{key + "=" + sample[0]}, sample[1:]...))
		})
	}
	if len(samples) != len(Keys("web")) {
		t.Errorf("samples has %d keys, and the file %d", len(samples), len(Keys("web")))
	}
}

func testSet(t *testing.T, args []string) {
	dir, path, before := initial(t)
	was := lab.Value(Load(dir))(t)
	c := lab.Value(Set(dir, args, false, whatever))(t)
	text := string(lab.Value(os.ReadFile(path))(t))
	is := lab.Value(Load(dir))(t)
	if !reflect.DeepEqual(is, c.Is) || !reflect.DeepEqual(was, c.Was) || comments(text) != comments(before) ||
		(len(c.Keys) > 0) != (text != before) {
		t.Errorf("changed %v, got %+v, and read %+v\n%s", c.Keys, c.Is, is, text)
	}
	c = lab.Value(Set(dir, args, false, whatever))(t)
	if again := string(lab.Value(os.ReadFile(path))(t)); len(c.Keys) > 0 || again != text {
		t.Errorf("again: changed %v\n%s", c.Keys, again)
	}
	args = removal(args)
	_, err := Set(dir, args, false, whatever)
	if needed := strings.Contains("name= address= server_id= version=", args[0]); needed {
		if err == nil || !strings.Contains(err.Error(), "missing") {
			t.Errorf("removed: got %v", err)
		}
		return
	}
	lab.Must(t, err)
	if removed := string(lab.Value(os.ReadFile(path))(t)); comments(removed) != comments(before) {
		t.Errorf("removed: the file is now\n%s", removed)
	}
	is = lab.Value(Load(dir))(t)
	if was.read, is.read = nil, nil; !reflect.DeepEqual(is, was) {
		t.Errorf("removed: got %+v, want %+v", is, was)
	}
}

// removal returns what undoes a sample.
func removal(args []string) []string {
	key, _, _ := strings.Cut(args[0], "=")
	section, _, _ := strings.Cut(key, ".")
	switch {
	case section == "service":
		return []string{"service.web="}
	case section == "metrics":
		return []string{"metrics="}
	case section == "fleet":
		return []string{"fleet="}
	case section == "firewall" && len(args) > 1:
		return []string{"firewall.mode=guard", "firewall.admit="}
	}
	return []string{key + "="}
}

// TestSetRefuses: what Load would refuse is not written, and none of several settings.
func TestSetRefuses(t *testing.T) {
	dir, path, before := initial(t)
	boom := errors.New("boom")
	for want, args := range map[string][]string{
		path + ":10: window: must be at most 10m":      {"receipts=false", "window=1h"},
		path + ":9: knock_ports: each entry is a port": {"knock_ports=0"},
		`windw: unknown key (did you mean "window"?)`:  {"windw=30s", "receipts=false"},
		`ports: should be 1 to `:                       {"service.web.for=1m"},
		`service.WEB: `:                                {"service.WEB.ports=tcp/80"},
		`service.(0 characters).ports: unknown key`:    {"service..ports=tcp/80"},
		"metrics.clients: has no effect":               {"metrics.clients=true"},
		"service.ssh.ports: udp/62201 is a knock port": {"service.ssh.ports=udp/62201"},
		path + ": server_id: missing":                  {"server_id="},
		path + ": would be larger than":                {"zone=" + strings.Repeat("x", maxFile)},
		"boom":                                         {"service.ssh="},
	} {
		_, err := Set(dir, args, false, func(c *Change) error {
			if _, ok := c.Is.Service("ssh"); !ok {
				return boom
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: got %v, want %s", args, err, want)
		}
	}
	_, err := Set(dir, []string{"receipts=false"}, false, func(*Change) error {
		return os.WriteFile(path, []byte(before+"# by hand\n"), 0o640)
	})
	if !errors.Is(err, place.ErrMeanwhile) {
		t.Errorf("edited meanwhile: %v", err)
	}
	c, err := Set(dir, []string{"receipts=false"}, true, whatever)
	if text := string(lab.Value(os.ReadFile(path))(t)); err != nil || len(c.Keys) != 1 || text != before+"# by hand\n" {
		t.Errorf("dry: %+v, %v\n%s", c, err, text)
	}
	lab.OnlyFiles(t, dir, FileName)
	lab.Must(t, os.WriteFile(path, []byte("version = 1\nnam"), 0o640))
	if _, err := Set(dir, []string{"name=gw"}, false, whatever); err == nil || !strings.Contains(err.Error(), ":2: not") {
		t.Errorf("a file with a mistake: %v", err)
	}
}

// TestSetKeepsTheFile: a change keeps mode, owner and group. A link, by which configuration management provides the
// file, is not replaced, and what it leads to stays too.
func TestSetKeepsTheFile(t *testing.T) {
	dir, path, before := initial(t)
	lab.Must(t, os.Chmod(path, 0o604))
	if os.Geteuid() == 0 {
		lab.Must(t, os.Chown(path, 12, 34))
	}
	was := lab.Value(os.Stat(path))(t)
	lab.Value(Set(dir, []string{"window=20s"}, false, whatever))(t)
	is := lab.Value(os.Stat(path))(t)
	if is.Mode() != was.Mode() || owner(is) != owner(was) {
		t.Errorf("got %v %v, want %v %v", is.Mode(), owner(is), was.Mode(), owner(was))
	}
	target := filepath.Join(t.TempDir(), "managed.toml")
	lab.Must(t, errors.Join(os.Remove(path), os.WriteFile(target, []byte(before), 0o640), os.Symlink(target, path)))
	_, err := Set(dir, []string{"window=20s"}, false, whatever)
	info := lab.Value(os.Lstat(path))(t)
	if err == nil || !strings.Contains(err.Error(), "change the file that it leads to") ||
		info.Mode()&fs.ModeSymlink == 0 || string(lab.Value(os.ReadFile(target))(t)) != before {
		t.Errorf("a link: %v, %v", err, info)
	}
}

// TestSetsInTurn: of settings that programs change at the same time none is lost.
func TestSetsInTurn(t *testing.T) {
	dir, _, _ := initial(t)
	var wg sync.WaitGroup
	args := []string{"window=20s", "limits.grants=3", "metrics.listen=[::1]:9620", "service.web.ports=tcp/80", "zone=UTC"}
	for _, arg := range args {
		wg.Go(func() {
			if _, err := Set(dir, []string{arg}, false, whatever); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if c := lab.Value(Set(dir, args, true, whatever))(t); len(c.Keys) > 0 {
		t.Errorf("lost: %v", c.Keys)
	}
}

// owner returns the user and the group of a file.
func owner(fi fs.FileInfo) [2]uint32 {
	st := fi.Sys().(*syscall.Stat_t)
	return [2]uint32{st.Uid, st.Gid}
}
