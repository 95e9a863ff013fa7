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
	"keys/quote":    {nil, "it quotes any text, whatever it is about"},
	"keys/service":  {nil, "names, ports and hours: every package needs them"},
	"keys/deadline": {nil, "it orders deadlines of anything"},
	"keys/mac":      {nil, "it authenticates bytes: callers know what they are"},
	"keys/words":    {nil, "it writes bytes: callers know what they are"},
	"keys/place":    {[]string{"keys/quote"}, "it handles bytes, owners and modes, not what files mean"},
	"keys/strict":   {[]string{"keys/place", "keys/quote"}, "it decodes any file: callers define the keys"},
	"keys": {[]string{"keys/mac", "keys/place", "keys/quote", "keys/service", "keys/strict", "keys/words"},
		"keys and profiles do not depend on the protocol or the firewall"},
	"spa/page": {nil, "it is a file: browsers run it"},
	"spa/stun": {nil, "it takes bytes out of a STUN request: callers know what they are"},
	"spa": {[]string{"keys", "keys/mac", "keys/service", "spa/stun"},
		"the packet is bytes, keys and a given time: it can be checked without a server or a kernel"},
	"spa/fleet": {[]string{"keys", "keys/service", "spa/fleet/share"},
		"a gateway checks its bundle by itself: it trusts no store, and needs no client of one"},
	"spa/fleet/share": {[]string{"keys", "keys/service"},
		"it names and seals what members of a site share: it knows neither a store nor a firewall"},
	"spa/fleet/share/member": {[]string{"keys", "spa/fleet/share"},
		"it says who may act: the server acts, and the agent reaches the store"},
	"spa/fleet/etcd": {[]string{"keys", "spa/fleet"}, "it stores bundles and sealed values: it can open none"},
	"spa/fleet/agent": {[]string{"keys", "keys/place", "keys/service", "keys/strict", "spa/fleet", "spa/fleet/etcd",
		"spa/fleet/share"}, "it carries bundles and messages: it has no key, and decides nothing"},
	"spa/fleet/share/standin": {[]string{"spa/fleet/share"}, "tests use it; no program imports it"},
	"spa/fleet/office": {[]string{"keys", "keys/place", "keys/service", "keys/strict", "spa/fleet", "spa/fleet/share"},
		"an office runs no gateway, and knows no store"},
	"spa/config": {[]string{"keys", "keys/place", "keys/service", "keys/strict"},
		"server.toml names services and ports: it decides nothing"},
	"spa/replay": {nil,
		"it stores bytes, not packets, so crash tests need nothing else"},
	"spa/recovery": {[]string{"keys"}, "it counts uses of keys: the line decides what a use is"},
	"spa/capture": {[]string{"spa/capture/gate", "spa/stun"},
		"it selects packets before anything is known about them"},
	"spa/capture/gate": {nil, "it checks bytes with a key in the kernel: callers know whose they are"},
	"spa/sandbox":      {nil, "dropping privileges does not depend on what the process does"},
	"spa/helper":       {nil, "it starts this program again: callers know what for"},
	"spa/lab": {nil,
		"it tests the others from outside: shared code would hide their mistakes"},
	"spa/models":              {nil, "it models the protocol: its test runs a model checker"},
	"firewall/internal/local": {nil, "the kernel alone knows which addresses are the host's own"},
	"firewall/internal/nl":    {nil, "it exchanges bytes with the kernel: callers know what they mean"},
	"firewall/internal/clock": {nil, "clocks and alarms come from the kernel alone"},
	"firewall/internal/statefile": {[]string{"spa/sandbox"},
		"it opens files with the rights of the process: callers know what is in them"},
	"firewall/internal/nftables": {[]string{"firewall/internal/guard", "firewall/internal/keeper",
		"firewall/internal/ledger", "firewall/internal/nl",
		"firewall/internal/sessions", "keys/service"}, "a backend carries out changes: it decides nothing"},
	"firewall/internal/iptables": {[]string{"firewall/internal/guard", "firewall/internal/ipset",
		"firewall/internal/keeper", "firewall/internal/ledger",
		"firewall/internal/nl", "firewall/internal/statefile", "keys/service", "spa/helper", "spa/sandbox"},
		"a backend carries out changes: it decides nothing"},
	"firewall/internal/ledger": {[]string{"firewall/internal/clock", "firewall/internal/guard",
		"firewall/internal/statefile", "keys/deadline", "keys/service"},
		"holders of grants are recorded before any backend changes"},
	"firewall/internal/ipset": {[]string{"firewall/internal/guard", "firewall/internal/nl", "keys/service"},
		"it changes sets: iptables has the rules that match them"},
	"firewall/internal/keeper": {[]string{"firewall/internal/statefile", "spa/helper", "spa/sandbox"},
		"a process that can do nothing needs to know nothing"},
	"firewall/internal/sessions": {[]string{"firewall/internal/guard", "firewall/internal/local", "firewall/internal/nl",
		"keys/service"}, "it lists and ends sessions: callers decide which"},
	"firewall/internal/guard": {[]string{"keys/service", "spa/sandbox"},
		"the words that the firewall and its backends share"},
	"firewall": {[]string{"firewall/internal/clock", "firewall/internal/guard", "firewall/internal/iptables",
		"firewall/internal/keeper",
		"firewall/internal/ledger", "firewall/internal/nftables", "firewall/internal/nl", "firewall/internal/sessions",
		"firewall/internal/statefile", "keys/service"}, "it opens ports for addresses: the policy has decided for whom"},
	"firewall/survey": {[]string{"firewall/internal/local", "keys/service"},
		"it reads the rule sets of other tools, and must not be able to change ours"},
	"spa/action": {[]string{"keys/quote", "keys/service", "spa/config", "spa/helper"},
		"it starts what the settings name: the line decides whether"},
	"spa/policy": {[]string{"keys", "keys/service", "spa", "spa/config", "firewall"},
		"it turns a request into a grant: it cannot give one"},
	"spa/audit": {[]string{"keys", "keys/service", "spa", "spa/config", "firewall"},
		"it records decisions: no decision depends on it"},
	"spa/server/control": {[]string{"keys", "keys/quote"},
		"a program that queries a server does not need the server's code"},
	"spa/server/setup": {[]string{"spa/server/control", "keys", "keys/place", "keys/quote", "spa", "spa/config",
		"spa/fleet", "spa/policy", "spa/recovery", "spa/replay", "spa/sandbox", "firewall"},
		"commands share it with the server: it handles no packet"},
	"spa/server/feed": {[]string{"spa/server/control", "keys/deadline", "keys/service", "spa", "spa/audit", "firewall"},
		"it reports decisions: no decision waits for it"},
	"spa/server/live": {[]string{"spa/server/control", "keys/quote"},
		"it draws what a server reports, as any program that queries one"},
	"spa/check": {[]string{"spa/server/setup", "spa/server/control", "keys", "keys/place", "keys/quote", "keys/service",
		"spa", "spa/action", "spa/audit", "spa/config", "spa/recovery",
		"spa/replay", "spa/sandbox", "firewall", "firewall/survey"},
		"it inspects a gateway as an administrator does: no decision depends on it"},
	"spa/server/acts": {[]string{"spa/server/control", "keys/quote", "spa/audit", "spa/config", "spa/sandbox"},
		"it records acts: it carries out none"},
	"spa/server/metrics": {[]string{"spa/server/control", "keys/quote", "spa/audit", "spa/config"},
		"it serves numbers that others counted: no decision waits for it"},
	"spa/server": {[]string{"spa/server/feed", "spa/server/setup", "spa/server/control", "spa/server/metrics",
		"spa/server/acts", "keys", "keys/place", "keys/quote",
		"keys/service", "spa", "spa/action", "spa/config", "spa/capture", "spa/capture/gate", "spa/fleet",
		"spa/fleet/share", "spa/fleet/share/member", "spa/recovery",
		"spa/replay", "spa/sandbox", "spa/policy", "spa/audit", "firewall"},
		"the line is the one place where all stages meet"},
	"spa/client": {[]string{"keys", "keys/service", "spa"},
		"it runs on machines without a firewall of ours, and on other systems than Linux"},
	"spa/client/doctor": {[]string{"keys", "keys/service", "spa", "spa/client"}, "it examines a gateway as a client does"},
	"cmd/internal/cli": {[]string{"keys", "keys/quote", "keys/service", "keys/strict"},
		"it holds what all commands share, so it imports no command's packages"},
	"cmd/internal/enrol": {[]string{"keys", "keys/service", "cmd/internal/cli"},
		"terms and tokens look alike in the programs that make clients' keys"},
	"cmd/internal/tty": {[]string{"cmd/internal/cli"}, "it reads what a person types: callers know what it is"},
	"cmd/internal/man": {[]string{"spa/lab"}, "tests use it; no program imports it"},
	"cmd/spa-server": {[]string{"keys", "keys/quote", "keys/service", "spa", "spa/config", "spa/capture", "spa/replay",
		"spa/action", "spa/sandbox", "spa/policy", "spa/audit",
		"spa/check", "spa/server", "spa/server/setup", "spa/server/control", "spa/server/live", "spa/server/metrics",
		"spa/server/acts", "firewall",
		"cmd/internal/cli"},
		"a command calls the library"},
	"cmd/spa-keygen": {[]string{"keys", "keys/place", "keys/service", "spa", "spa/config", "spa/page", "spa/recovery",
		"spa/server/acts", "spa/server/control", "cmd/internal/cli", "cmd/internal/enrol"},
		"it writes the files that the daemon reads, and sends it only a line for its log"},
	"cmd/spa-fleet": {[]string{"keys", "keys/place", "keys/quote", "keys/service", "spa/fleet", "spa/fleet/agent",
		"spa/fleet/etcd", "spa/fleet/office", "cmd/internal/cli", "cmd/internal/enrol", "cmd/internal/tty"},
		"an office contains no server code"},
	"cmd/spa-client": {[]string{"keys", "keys/place", "keys/quote", "keys/service", "spa", "spa/client",
		"spa/client/doctor", "cmd/internal/cli", "cmd/internal/tty"},
		"a client contains no server code"},
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
			t.Errorf("package spa imports %s, but must be pure: no clock, no I/O, no logger", path)
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
