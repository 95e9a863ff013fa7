package page

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sallyport/spa/lab"
)

// program runs one of the programs and returns what it prints.
func (v *view) program(name string, args ...string) string {
	v.Helper()
	out, err := exec.Command(filepath.Join(v.gw.Bin, name), args...).Output()
	if err != nil {
		v.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return string(out)
}

// join lets the gateway, before its start, join a fleet that has another one too, db1 at 192.0.2.99, and returns the
// tokens of the two keys that a client of the fleet has had.
func (v *view) join() (first, token string) {
	v.Helper()
	dir, bundles := filepath.Join(v.TempDir(), "office"), v.TempDir()
	office := func(args ...string) string {
		v.Helper()
		return v.program("spa-fleet", append(args, "--office", dir, "--identity", dir+".identity")...)
	}
	add := func(name string, args ...string) (command []string) {
		v.Helper()
		line := v.program("spa-server", append([]string{"init", "--fleet"}, args...)...)
		lab.Must(v, os.WriteFile(dir+".line", []byte(line), 0o600))
		_, after, _ := strings.Cut(office("gateway", "add", name, dir+".line"), "spa-server ")
		return strings.Fields(after)
	}
	office("init", "--name", "prod", "--domain", "example.net", "--service", "ssh=tcp/22")
	add("db1", "--name", "db1", "--address", "192.0.2.99", "--config", dir+".db1")
	settings := add("gw", "--config", v.gw.Config)
	v.program("spa-server", append(settings, "fleet.bundle="+filepath.Join(bundles, "gw.bundle"),
		"fleet.local_clients=true", "--config", v.gw.Config)...)
	first = office("client", "new", "phone", "--allow", "ssh", "--for-browser")
	token = office("client", "rotate", "phone")
	office("publish", "--to", bundles)
	return first, token
}

// fleet: with the token of a fleet the page asks for the gateway, and for its address unless the token has it. It keeps
// each gateway that is added, and knocks with the keys of that one alone.
func (v *view) fleet(page string, w *view, first, token string) {
	v.Helper()
	v.fresh(page)
	v.enter(first, true)
	v.press("Add")
	v.reads("Enter the name of a gateway, such as web7.")
	v.wantFocus("Gateway of the fleet")
	v.wantScript("db1 gw", "return [...document.getElementById('choices').options].map((o) => o.value).join(' ')",
		"gateways on offer")
	v.fill("choice", "gw")
	v.reads("A page cannot look up gw.example.org")
	v.fill("hosts", "198.51.100.1")
	v.shots("fleet")
	v.press("Add")
	v.reads("prod/gw is kept in this browser")
	v.enter(token, false)
	v.fill("choice", "db1")
	v.browser.Run("document.getElementById('keep').click()")
	v.press("Add")
	v.reads("prod/db1 is kept in this browser")
	v.enter(token, false)
	v.fill("choice", "gw")
	v.fill("hosts", "198.51.100.1")
	v.browser.Run("setTimeout(() => document.querySelector('#add button.main').click())")
	v.browser.Answer(true)
	v.reads("prod/gw is kept in this browser")
	v.wantScript("true", "return localStorage.getItem('sallyport') !== null", "kept after the second key")
	v.unlock(page)
	v.wantScript("prod/db1: ; prod/gw: ", states, "kept gateways of the fleet")
	if v.reaches("198.51.100.1") {
		v.Errorf("%s: the gateway of the fleet is open before the knock", v.browser.Name())
	}
	v.in("198.51.100.1", "Open ssh")
	v.reads("ssh is open: connect within")
	lab.Eventually(v, v.browser.Name()+" to reach prod/gw", func() bool { return v.reaches("198.51.100.1") })
	w.want(false, "192.0.2.3", "198.51.100.1", "a stranger")
	v.in("198.51.100.1", "Close ssh")
	v.reads("ssh is closed for new connections")
	if v.reaches("198.51.100.1") {
		v.Errorf("%s: the gateway of the fleet should be shut", v.browser.Name())
	}
}
