package check

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/spa/config"
)

// The machine's files: which units start at boot, and what they do to rule sets. This does not query systemd,
// so that it also works if systemd is not running.

// bySystemd reports whether systemd has booted the machine (sd_booted(3)).
func (h *host) bySystemd() bool {
	fi, err := os.Stat(filepath.Join(h.root, "run/systemd/system"))
	return err == nil && fi.IsDir()
}

// enabled reports whether a unit is started at boot.
func (h *host) enabled(unit string) bool {
	for _, pattern := range []string{"*.wants", "*.requires"} {
		found, err := filepath.Glob(filepath.Join(h.root, "etc/systemd/system", pattern, unit))
		if err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// checkBoot checks whether the guard is loaded before the network at boot, and whether the server starts.
func checkBoot(c *config.Config, h *host) []Finding {
	if !h.bySystemd() || len(c.Services) == 0 {
		return nil
	}
	if !h.enabled("spa-server.service") {
		return []Finding{{
			Severity: Warning, Subject: "spa-server.service",
			Text:   "it is not enabled: after a reboot knocks go unanswered and nothing opens",
			Advice: "systemctl enable spa-server.service spa-guard.service",
		}}
	}
	if c.Firewall.Backend == "dry-run" || c.Firewall.Mode == "admit" || h.enabled("spa-guard.service") {
		return nil
	}
	return []Finding{{
		Severity: Warning, Subject: "spa-guard.service",
		Text:   "it is not enabled: after a reboot the ports are open until the server has started",
		Advice: "systemctl enable spa-guard.service",
	}}
}

// flusher is a unit that empties rule sets when it is started, stopped or reloaded.
type flusher struct {
	unit     string
	nft      func(h *host) bool // whether it also removes other programs' tables
	iptables func(h *host) bool
}

var flushers = []flusher{
	{"nftables.service", always, always}, // it does when it is stopped, whatever its file contains
	{"netfilter-persistent.service", never, always},
	{"iptables.service", never, always},
	{"firewalld.service", never, func(h *host) bool {
		return h.says("etc/firewalld/firewalld.conf",
			"FirewallBackend=iptables")
	}},
	{"ferm.service", never, always},
	{"shorewall.service", never, always},
}

func always(*host) bool { return true }
func never(*host) bool  { return false }

// says reports whether a configuration file has a line that begins with these words.
func (h *host) says(path, text string) bool {
	data, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(strings.TrimSpace(line)+" ", text+" ") {
			return true
		}
	}
	return false
}

// checkFlush looks for units that empty rule sets, if nothing restores the guard while no server is running.
func checkFlush(c *config.Config, h *host) []Finding {
	if c.Firewall.Backend == "dry-run" || c.Firewall.Mode == "admit" || len(c.Services) == 0 {
		return nil
	}
	var found []Finding
	included := h.includes("etc/nftables.conf", "table inet spa", 0) ||
		h.includes("etc/sysconfig/nftables.conf", "table inet spa", 0)
	iptables := c.Firewall.Backend == "iptables" || h.rules != nil && h.byIPTables()
	if c.Firewall.Persist == "file" && !iptables && !included {
		found = append(found, Finding{
			Severity: Warning, Subject: "firewall.persist",
			Text: `"file", but /etc/nftables.conf has no table inet spa: a flush of the rule set while the server is dead ` +
				`opens the ports`,
			Advice: "spa-server guard --print > /etc/spa/guard.nft\n# and in /etc/nftables.conf: include " +
				"\"/etc/spa/guard.nft\"; or persist = \"owner\"",
		})
	}
	if c.Firewall.Persist != "file" && !iptables && included {
		found = append(found, Finding{
			Severity: Problem, Subject: "firewall.persist",
			Text: `"owner", and /etc/nftables.conf loads the table inet spa too: the kernel refuses that, and ` +
				`with it the whole reload`,
			Advice: `# set persist = "file", or take the table out of /etc/nftables.conf`,
		})
	}
	if c.Firewall.Persist != "file" && !iptables && !included && h.uid == 0 && h.rules != nil && !h.persists {
		return append(found, Finding{
			Severity: Warning, Subject: "firewall.persist",
			Text: `"owner" needs Linux 6.9 or later. On this kernel another tool can flush the guard, and the ports are open ` +
				`until the running server restores it or a dead server starts again`,
			Advice: "spa-server guard --print > /etc/spa/guard.nft\n# and in /etc/nftables.conf: include " +
				"\"/etc/spa/guard.nft\"; in server.toml: persist = \"file\"",
		})
	}
	units := h.flushing(iptables)
	if len(units) == 0 || !iptables && (included || h.stays(c)) || len(found) > 0 {
		return found
	}
	return append(found, Finding{
		Severity: Warning, Subject: strings.Join(units, ", "),
		Text: "enabled, and reloading or stopping it flushes the rule set with the guard: a running server restores it " +
			"at once, a dead one does not",
		Advice: remedy(iptables),
	})
}

func remedy(iptables bool) string {
	if iptables {
		return "spa-server guard\n# each time after reloading it"
	}
	return "spa-server guard --print\n# put that into the file that is loaded, and set persist = \"file\""
}

// stays reports whether the guard survives a flush: the kernel lets a table have an owner.
func (h *host) stays(c *config.Config) bool {
	if h.rules != nil {
		if t, ok := h.rules.Table("inet", "spa"); ok {
			return t.Owned && t.Persistent
		}
	}
	return c.Firewall.Persist != "file" && h.persists
}

// flushing returns the enabled units that would flush the guard's backend.
func (h *host) flushing(iptables bool) []string {
	var units []string
	for _, f := range flushers {
		empties := f.nft
		if iptables {
			empties = f.iptables
		}
		if h.enabled(f.unit) && empties(h) {
			units = append(units, f.unit)
		}
	}
	return units
}

// includes reports whether an nft file, or a file that it includes, has a line that begins with these words.
func (h *host) includes(path, text string, depth int) bool {
	const deepest = 16 // nft's limit
	if depth > deepest {
		return false
	}
	if h.says(path, text) {
		return true
	}
	data, err := os.ReadFile(filepath.Join(h.root, path))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[0] != "include" {
			continue
		}
		name := strings.Trim(f[1], `"'`)
		if !filepath.IsAbs(name) {
			name = filepath.Join("/etc", name) // nft's include path
		}
		files, _ := filepath.Glob(filepath.Join(h.root, name)) // a bad pattern includes nothing
		if slices.ContainsFunc(files, func(file string) bool {
			return h.includes(strings.TrimPrefix(file, filepath.Clean(h.root)), text, depth+1)
		}) {
			return true
		}
	}
	return false
}
