package keys

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// A rule lists the packages of this module that a package may import, and why it may import no others.
type rule struct {
	may []string
	why string
}

// arrows are the imports of the whole module. Every package must be listed.
var arrows = map[string]rule{
	"keys/quote":    {nil, "text for a terminal or a shell: it does not matter whose"},
	"keys/service":  {nil, "names, ports and hours: everything speaks of them"},
	"keys/deadline": {nil, "what ends first: it does not matter what ends"},
	"keys/place":    {[]string{"keys/quote"}, "files are bytes, owners and modes: what they say is another's business"},
	"keys/strict":   {[]string{"keys/place", "keys/quote"}, "it decodes any file: which keys there are, its callers know"},
	"keys": {[]string{"keys/place", "keys/quote", "keys/service", "keys/strict"},
		"who may knock does not depend on what is said or done"},
	"spa": {[]string{"keys", "keys/service"},
		"the packet is bytes, keys and a given time: it can be checked without a server or a kernel"},
	"spa/config": {[]string{"keys", "keys/place", "keys/service", "keys/strict"},
		"server.toml names services and ports: it decides nothing"},
	"spa/replay": {nil,
		"the memory of nonces is tried crash by crash on its own: it knows bytes, not packets"},
	"spa/capture": {nil, "a stranger's bytes are looked at before anything of ours is known about them"},
	"spa/sandbox": {nil, "what the process gives up does not depend on what it does"},
	"spa/helper":  {nil, "it starts this program again: what for is its callers' business"},
	"spa/lab": {nil,
		"it proves the others from outside: what it shared with them would hide their mistakes"},
	"firewall/internal/local": {nil, "the kernel alone knows which addresses are the host's own"},
	"firewall/internal/nl":    {nil, "bytes to and from the kernel: what they mean is its callers' business"},
	"firewall/internal/clock": {nil, "the kernel's clocks are nobody's business but the kernel's"},
	"firewall/internal/statefile": {[]string{"spa/sandbox"},
		"it opens files by the rights of the process: what is in them is its callers' business"},
	"firewall/internal/nftables": {[]string{"firewall/internal/guard", "firewall/internal/keeper",
		"firewall/internal/ledger", "firewall/internal/nl",
		"firewall/internal/sessions", "keys/service"}, "a backend does what it is told: it decides nothing"},
	"firewall/internal/iptables": {[]string{"firewall/internal/guard", "firewall/internal/ipset",
		"firewall/internal/keeper", "firewall/internal/ledger",
		"firewall/internal/nl", "firewall/internal/statefile", "keys/service", "spa/helper", "spa/sandbox"},
		"a backend does what it is told: it decides nothing"},
	"firewall/internal/ledger": {[]string{"firewall/internal/clock", "firewall/internal/guard",
		"firewall/internal/statefile", "keys/deadline", "keys/service"},
		"who holds what is decided before any backend is told"},
	"firewall/internal/ipset": {[]string{"firewall/internal/guard", "firewall/internal/nl", "keys/service"},
		"sets of the kernel: which rules ask them is iptables' business"},
	"firewall/internal/keeper": {[]string{"firewall/internal/statefile", "spa/helper", "spa/sandbox"},
		"a process that can do nothing needs to know nothing"},
	"firewall/internal/sessions": {[]string{"firewall/internal/guard", "firewall/internal/local", "firewall/internal/nl",
		"keys/service"}, "it lists and ends sessions: which ones is decided elsewhere"},
	"firewall/internal/guard": {[]string{"keys/service", "spa/sandbox"},
		"the words that the firewall and its backends share"},
	"firewall": {[]string{"firewall/internal/clock", "firewall/internal/guard", "firewall/internal/iptables",
		"firewall/internal/keeper",
		"firewall/internal/ledger", "firewall/internal/nftables", "firewall/internal/nl", "firewall/internal/sessions",
		"firewall/internal/statefile", "keys/service"}, "it opens ports for addresses: who may was decided before"},
	"firewall/survey": {[]string{"firewall/internal/local", "keys/service"},
		"it reads the rule sets of others: what reads them must not be what changes ours"},
	"spa/action": {[]string{"keys/quote", "keys/service", "spa/config", "spa/helper"},
		"it starts what the settings name: whether, somebody else has decided"},
	"spa/policy": {[]string{"keys", "keys/service", "spa", "spa/config", "firewall"},
		"it turns a request into a grant: it cannot give one"},
	"spa/audit": {[]string{"keys", "keys/service", "spa", "spa/config", "firewall"},
		"it records what was decided: nothing that decides depends on it"},
	"spa/server/control": {[]string{"keys", "keys/quote"},
		"a program that queries a server needs words and times, not the server"},
	"spa/server/setup": {[]string{"spa/server/control", "keys", "keys/place", "keys/quote", "spa", "spa/config",
		"spa/policy", "spa/replay", "spa/sandbox", "firewall"},
		"commands share it with the server: it handles no packet"},
	"spa/server/feed": {[]string{"spa/server/control", "keys/deadline", "keys/service", "spa", "spa/audit", "firewall"},
		"it tells of decisions: nothing that decides waits for it"},
	"spa/server/live": {[]string{"spa/server/control", "keys/quote"},
		"it draws what a server reports, as any program that queries one"},
	"spa/check": {[]string{"spa/server/setup", "spa/server/control", "keys", "keys/place", "keys/quote", "keys/service",
		"spa", "spa/action", "spa/audit", "spa/config",
		"spa/replay", "spa/sandbox", "firewall", "firewall/survey"},
		"it looks at a gateway as an administrator does: nothing that decides depends on it"},
	"spa/server/acts": {[]string{"spa/server/control", "keys/quote", "spa/audit", "spa/config", "spa/sandbox"},
		"it tells of what was done: it does nothing"},
	"spa/server/metrics": {[]string{"spa/server/control", "keys/quote", "spa/audit", "spa/config"},
		"it tells numbers that others counted: nothing that decides waits for it"},
	"spa/server": {[]string{"spa/server/feed", "spa/server/setup", "spa/server/control", "spa/server/metrics",
		"spa/server/acts", "keys", "keys/place", "keys/quote",
		"keys/service", "spa", "spa/action", "spa/config", "spa/capture",
		"spa/replay", "spa/sandbox", "spa/policy", "spa/audit", "firewall"},
		"the line, the one place where all stages meet"},
	"spa/client": {[]string{"keys", "keys/service", "spa"},
		"it runs on machines without a firewall of ours, and on other systems than Linux"},
	"spa/client/doctor": {[]string{"keys", "keys/service", "spa", "spa/client"}, "it looks at a gateway as a client does"},
	"cmd/internal/cli": {[]string{"keys", "keys/quote", "keys/service", "keys/strict"},
		"what all commands share belongs to none of them"},
	"cmd/spa-server": {[]string{"keys", "keys/quote", "keys/service", "spa", "spa/config", "spa/capture", "spa/replay",
		"spa/action", "spa/sandbox", "spa/policy", "spa/audit",
		"spa/check", "spa/server", "spa/server/setup", "spa/server/control", "spa/server/live", "spa/server/metrics",
		"spa/server/acts", "firewall",
		"cmd/internal/cli"},
		"a command calls the library"},
	"cmd/spa-keygen": {[]string{"keys", "keys/place", "keys/service", "spa", "spa/config", "spa/server/acts",
		"spa/server/control", "cmd/internal/cli"},
		"it writes files: the daemon reads them, and learns of keygen no more than a line for its log"},
	"cmd/spa-client": {[]string{"keys", "keys/place", "keys/quote", "keys/service", "spa", "spa/client",
		"spa/client/doctor", "cmd/internal/cli"},
		"a client has nothing of a server in it"},
}

// unreachable lists packages that a package must not import, even indirectly.
var unreachable = map[string]rule{
	"cmd/spa-client": {[]string{"sallyport/firewall", "github.com/google/nftables", "github.com/google/gopacket"},
		"users carry the client to systems that have none of these"},
	"cmd/spa-server": {[]string{"sallyport/spa/lab", "testing"}, "what tests need does not belong on a gateway"},
}

// impure lists what package spa must not import: it has no clock, no I/O and no logger.
var impure = []string{"context", "io/fs", "log", "log/slog", "net", "os", "os/exec", "syscall"}

const module = "sallyport/"

// goList runs go list and returns the words of each line after the first, keyed by the first.
func goList(t *testing.T, goos, format string) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-f", "{{.ImportPath}} "+format, "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	lists := make(map[string][]string)
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		lists[strings.TrimPrefix(words[0], module)] = words[1:]
	}
	return lists
}

func TestArrows(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		packages := goList(t, goos, `{{join .Imports " "}}`)
		if _, ok := packages["keys"]; !ok {
			t.Fatalf("go list does not even have this package: %v", packages)
		}
		for name, imports := range packages {
			if !strings.HasPrefix(name, "examples/") { // an example may import anything
				checkArrows(t, name, imports)
			}
		}
	}
}

func checkArrows(t *testing.T, name string, imports []string) {
	t.Helper()
	r, ok := arrows[name]
	if !ok {
		t.Errorf("package %s has no rule: what may it import, and why?", name)
		return
	}
	for _, path := range imports {
		if name == "spa" && slices.Contains(impure, path) {
			t.Errorf("package spa imports %s, and is to be pure: no clock, no I/O, no logger", path)
		}
		if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(r.may, ours) {
			t.Errorf("package %s imports %s, and may not: %s", name, ours, r.why)
		}
	}
}

func TestUnreachable(t *testing.T) {
	for name, deps := range goList(t, "linux", `{{join .Deps " "}}`) {
		r := unreachable[name]
		for _, path := range r.may {
			if slices.Contains(deps, path) {
				t.Errorf("package %s leads to %s, and must not: %s", name, path, r.why)
			}
		}
	}
}

// TestRulesHaveNoCycle: the rules themselves have no cycle. Go rejects an import cycle only once it has been written.
func TestRulesHaveNoCycle(t *testing.T) {
	var reaches func(from, to string) bool
	reaches = func(from, to string) bool {
		for _, next := range arrows[from].may {
			if next == to || reaches(next, to) {
				return true
			}
		}
		return false
	}
	for name := range arrows {
		if reaches(name, name) {
			t.Errorf("the rules lead from %s back to it", name)
		}
	}
}
