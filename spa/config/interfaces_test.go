package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sallyport/spa/lab"
)

// TestInterfaceNames: a name that nft or iptables would read as something else is refused, with its line in the error.
func TestInterfaceNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"wg0": true, "eth0.100": true, "br-lan": true, "enp0s31f6": true, "a_b@c": true, "A": true,
		"eth*": false, "*": false, "wg+": false, "+": false, "a+b": false, "-j": false, "!eth0": false, ".": false,
		"..":   false,
		`a\"b`: false, `\"accept#`: false, `a\\b`: false, `a'b`: false, `\u0001`: false, `a\tb`: false, `a\nb`: false,
		"a b": false, "a:b": false, "a/b": false,
		"über": false, `a\u202eb`: false, `a\u0000b`: false, "$x": false, "{a}": false, "a;b": false, "a#b": false,
		"a%b": false,
	} {
		for _, line := range []string{"[capture]\ninterfaces", "[firewall]\ntrusted_interfaces"} {
			dir := t.TempDir()
			path := filepath.Join(dir, FileName)
			text := least + line + " = [\"" + name + "\"]\n"
			lab.Must(t, os.WriteFile(path, []byte(text), 0o640))
			_, err := Load(dir)
			where := path + ":6: " + strings.Trim(strings.Replace(line, "]\n", ".", 1), "[") +
				": entry 1: the name of an interface "
			if ok && err != nil || !ok && (err == nil || !strings.Contains(err.Error(), where)) {
				t.Errorf("%s = %q: got %v", line, name, err)
			}
		}
	}
}
