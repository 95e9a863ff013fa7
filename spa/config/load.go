package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"sallyport/keys"
	"sallyport/keys/service"
	"sallyport/keys/strict"
)

const maxFile = 1 << 20

// The file before its values are interpreted.
type (
	raw struct {
		Version    int64                 `toml:"version"`
		Name       string                `toml:"name"`
		Address    string                `toml:"address"`
		ServerID   string                `toml:"server_id"`
		KnockPorts []any                 `toml:"knock_ports"`
		Window     string                `toml:"window"`
		Receipts   bool                  `toml:"receipts"`
		State      string                `toml:"state"`
		Zone       *string               `toml:"zone"`
		Capture    rawCapture            `toml:"capture"`
		Firewall   rawFirewall           `toml:"firewall"`
		Audit      rawAudit              `toml:"audit"`
		Metrics    rawMetrics            `toml:"metrics"`
		Limits     rawLimits             `toml:"limits"`
		Fleet      rawFleet              `toml:"fleet"`
		Service    map[string]rawService `toml:"service"`
	}
	rawCapture struct {
		Mode       string   `toml:"mode"`
		Interfaces []string `toml:"interfaces"`
		Browser    bool     `toml:"browser"`
		Gate       string   `toml:"gate"`
	}
	rawFirewall struct {
		Backend           string   `toml:"backend"`
		Mode              string   `toml:"mode"`
		Closed            string   `toml:"closed"`
		Persist           string   `toml:"persist"`
		TrustedInterfaces []string `toml:"trusted_interfaces"`
		TPROXY            bool     `toml:"tproxy"`
		Mark              *int64   `toml:"mark"`
		Admit             rawAdmit `toml:"admit"`
	}
	rawAdmit struct {
		Table string `toml:"table"`
		Set4  string `toml:"set4"`
		Set6  string `toml:"set6"`
	}
	rawAudit struct {
		File string `toml:"file"`
	}
	rawMetrics struct {
		Listen  string `toml:"listen"`
		Clients bool   `toml:"clients"`
	}
	rawLimits struct {
		LiveNonces    int64 `toml:"live_nonces"`
		Grants        int64 `toml:"grants"`
		GrantsPerHour int64 `toml:"grants_per_hour"`
	}
	rawService struct {
		Ports     []string `toml:"ports"`
		For       *string  `toml:"for"`
		MaxFor    *string  `toml:"max_for"`
		Addresses []string `toml:"addresses"`
		OnExpiry  *string  `toml:"on_expiry"`
		Once      bool     `toml:"once"`
		When      []string `toml:"when"`
		Run       []string `toml:"run"`
		RunAfter  []string `toml:"run_after"`
		User      *string  `toml:"user"`
		Timeout   *string  `toml:"timeout"`

		Forward    any  `toml:"forward"` // text, or a list of texts
		Masquerade bool `toml:"masquerade"`
	}
)

// Load reads dir/server.toml. Its error joins all problems, each a *place.FileError with file, line and key.
func Load(dir string) (*Config, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return load(dir, func(into *raw) (*strict.Document, error) {
		return strict.DecodeFile(filepath.Join(dir, FileName), maxFile, into)
	})
}

// LoadIn is Load for a directory that was opened earlier, at the absolute path dir. It works after privileges were
// dropped.
func LoadIn(root *os.Root, dir string) (*Config, error) {
	return load(dir, func(into *raw) (*strict.Document, error) {
		return strict.DecodeFileIn(root, dir, FileName, maxFile, into)
	})
}

// Parse is Load for the text of a server.toml of dir, an absolute path, that is stored elsewhere; errors name it
// name.
func Parse(dir, name string, text []byte) (*Config, error) {
	return load(dir, func(into *raw) (*strict.Document, error) { return strict.Decode(name, text, into) })
}

func load(dir string, decode func(into *raw) (*strict.Document, error)) (*Config, error) {
	file := undecided()
	d, err := decode(&file)
	if err != nil {
		return nil, err
	}
	l := loader{doc: d, raw: &file, cfg: Default(dir)}
	return l.load()
}

// undecided returns the file's values before it is read: what it omits keeps its default.
func undecided() raw {
	def := Default("")
	return raw{
		Window:   service.FormatDuration(def.Window),
		Receipts: def.Receipts,
		State:    ".",
		Capture:  rawCapture{Mode: def.Capture.Mode, Gate: def.Capture.Gate},
		Firewall: rawFirewall{Backend: def.Firewall.Backend, Mode: def.Firewall.Mode, Closed: def.Firewall.Closed,
			Persist: def.Firewall.Persist},
		Audit: rawAudit{File: def.Audit.File},
		Limits: rawLimits{
			LiveNonces: int64(def.Limits.LiveNonces), Grants: int64(def.Limits.Grants),
			GrantsPerHour: int64(def.Limits.GrantsPerHour),
		},
	}
}

// A loader interprets the values one after the other and collects the problems.
type loader struct {
	doc      *strict.Document
	raw      *raw
	cfg      Config
	problems []error
}

func (l *loader) load() (*Config, error) {
	l.identity()
	l.knockPorts()
	l.line()
	l.files()
	l.metrics()
	l.zone()
	l.firewall()
	l.limits()
	l.fleet()
	for _, name := range slices.Sorted(maps.Keys(l.raw.Service)) {
		l.service(name, l.raw.Service[name])
	}
	l.collisions()
	if len(l.problems) > 0 {
		return nil, errors.Join(l.problems...)
	}
	l.cfg.read = l.doc.Text()
	return &l.cfg, nil
}

// must notes an error about a key.
func (l *loader) must(key string, err error) {
	if err == nil {
		return
	}
	l.problems = append(l.problems, l.doc.Problem(key, "%s", err))
}

func (l *loader) identity() {
	for _, key := range []string{"name", "address", "server_id"} {
		if !l.doc.Has(key) {
			l.must(key, errors.New("missing"))
		}
	}
	var err error
	l.cfg.Name, l.cfg.Address = l.raw.Name, l.raw.Address
	if l.doc.Has("name") {
		l.must("name", service.ValidName(l.cfg.Name))
	}
	if l.doc.Has("address") {
		_, _, err = service.SplitAddress(l.cfg.Address)
		l.must("address", err)
	}
	if l.doc.Has("server_id") {
		l.cfg.ServerID, err = keys.ParseServerID(l.raw.ServerID)
		l.must("server_id", err)
	}
}

func (l *loader) knockPorts() {
	if !l.doc.Has("knock_ports") {
		return
	}
	l.cfg.KnockPorts = nil
	if n := len(l.raw.KnockPorts); n == 0 || n > keys.MaxKnockPorts {
		l.must("knock_ports", fmt.Errorf("should be 1 to %d ports", keys.MaxKnockPorts))
		return
	}
	for i, entry := range l.raw.KnockPorts {
		if k, ok := l.knockPort(i, entry); ok {
			l.addKnockPort(k)
		}
	}
}

func (l *loader) addKnockPort(k KnockPort) {
	for _, other := range l.cfg.KnockPorts {
		if other.Port == k.Port {
			l.must("knock_ports", fmt.Errorf("port %d is listed twice", k.Port))
			return
		}
	}
	l.cfg.KnockPorts = append(l.cfg.KnockPorts, k)
}

// knockPort reads 62201 or { port = 443, shared = true }.
func (l *loader) knockPort(i int, entry any) (KnockPort, bool) {
	table, ok := entry.(map[string]any)
	if !ok {
		port, ok := l.port(entry)
		return KnockPort{Port: port}, ok
	}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		if key != "port" && key != "shared" {
			p := l.doc.Problem(fmt.Sprintf("knock_ports.%d.%s", i, key), "unknown key")
			p.Suggestion = strict.Nearest(key, []string{"port", "shared"})
			l.problems = append(l.problems, p)
			return KnockPort{}, false
		}
	}
	port, ok := l.port(table["port"])
	shared, isBool := table["shared"].(bool)
	if !isBool && table["shared"] != nil {
		l.must(fmt.Sprintf("knock_ports.%d.shared", i), errors.New("should be true or false"))
	}
	return KnockPort{Port: port, Shared: shared}, ok
}

func (l *loader) port(value any) (uint16, bool) {
	n, ok := value.(int64)
	if !ok || n < 1 || n > 65535 {
		l.must("knock_ports", errors.New("each entry is a port, 1 to 65535, or { port = 443, shared = true }"))
		return 0, false
	}
	return uint16(n), true
}
