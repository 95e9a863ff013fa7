package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInterfaceNames: what nft or iptables would take for a pattern is no name: by one word more
// would be trusted than who wrote it can see.
func TestInterfaceNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"wg0": true, "eth0.100": true, "br-lan": true, "enp0s31f6": true, "a+b": true, "über": true,
		"eth*": false, "*": false, "wg+": false, "+": false, "-j": false, "!eth0": false,
	} {
		for _, line := range []string{"[capture]\ninterfaces", "[firewall]\ntrusted_interfaces"} {
			dir := t.TempDir()
			text := least + line + " = [\"" + name + "\"]\n"
			if err := os.WriteFile(filepath.Join(dir, FileName), []byte(text), 0o640); err != nil {
				t.Fatal(err)
			}
			_, err := Load(dir)
			if ok && err != nil || !ok && (err == nil || !strings.Contains(err.Error(), "name each interface")) {
				t.Errorf("%s = %q: got %v", line, name, err)
			}
		}
	}
}
