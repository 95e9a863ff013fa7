package page

import (
	"time"

	"sallyport/spa/lab"
)

// second starts another gateway, at 198.51.100.1, whose name and clients are those of the first. It is also in a fleet,
// of which second returns the tokens that join does.
func (v *view) second(bin string) (w *view, first, token string) {
	v.Helper()
	host := lab.New(v.T, "second")[0]
	lab.Must(v, lab.Link(v.gw.Client, "vd", host, "vs"))
	lab.Must(v, v.gw.Client.AddAddr("vd", "198.51.100.2/24"))
	lab.Must(v, host.AddAddr("vs", "198.51.100.1/24"))
	lab.Must(v, host.Route("192.0.2.0/24", "198.51.100.2"))
	gw := lab.NewGatewayAt(v, bin, v.gw.Client, host, "198.51.100.1", "ssh=tcp/22")
	w = &view{T: v.T, browser: v.browser, gw: gw}
	w.edit("# browser = true", "browser = true")
	w.edit(`for = "30s"`, `for = "10m"`)
	w.edit(`address = "198.51.100.1"`, `address = "gw.example.org"`)
	first, token = w.join()
	gw.Start()
	_, err := lab.EchoServer(host, ":22")
	lab.Must(v, err)
	return w, first, token
}

// in presses a button of the gateway at an address.
func (v *view) in(address, name string) {
	v.Helper()
	got := v.browser.Run(`const c = [...document.querySelectorAll('.card')].find((c) => c.textContent.includes(args[0]));
		const b = [...c.querySelectorAll('button')].find((b) => b.textContent === args[1]);
		setTimeout(() => b.click()); return ''`, address, name)
	if got != "" {
		v.Fatalf("%s at %s: %s", name, address, got)
	}
}

// reaches reports whether ssh of a gateway can be reached from any of the client's addresses.
func (v *view) reaches(to string) bool {
	for _, from := range []string{"192.0.2.2", "198.51.100.2"} {
		if conn, err := lab.Dial(v.gw.Client, from, to+":22", 300*time.Millisecond); err == nil {
			conn.Close()
			return true
		}
	}
	return false
}

// only checks that ssh can be reached at one gateway, and not at the other.
func (v *view) only(open, shut string) {
	v.Helper()
	lab.Eventually(v, v.browser.Name()+" to reach "+open, func() bool { return v.reaches(open) })
	if v.reaches(shut) {
		v.Errorf("%s: %s should be shut", v.browser.Name(), shut)
	}
}

const states = `return [...document.querySelectorAll('.card')].map((c) => c.querySelector('h2').textContent + ': ' +
	(c.querySelector('.state').textContent.match(/ssh is \w+/) ?? '')).join('; ')`

// two: two gateways of one name in one browser have a key each. What becomes of one does not change the other.
func (v *view) two(page string, w *view) {
	v.Helper()
	for _, earlier := range []string{"keys", "seen", "half"} { // this gateway must have no other grant
		v.gw.Command("spa-server", "revoke", earlier).Run() // not every browser had each client
	}
	v.fresh(page)
	v.enter(v.keygen("new", "twin", "--allow", "ssh", "--for-browser"), true)
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.in("192.0.2.1", "Open ssh")
	v.reads("ssh is open: connect within")
	v.enter(w.keygen("new", "twin", "--allow", "ssh", "--for-browser"), false)
	v.fill("hosts", "198.51.100.1")
	v.browser.Run("document.getElementById('keep').click()")
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.wantScript("gw (twin at 192.0.2.1): ssh is open; gw (twin at 198.51.100.1): ", states, "after the second token")
	v.only("192.0.2.1", "198.51.100.1")
	v.in("198.51.100.1", "Open ssh")
	v.reads("gw (twin at 198.51.100.1): ssh is open")
	v.shots("two")
	v.in("192.0.2.1", "Close ssh")
	v.reads("gw (twin at 192.0.2.1): ssh is closed")
	v.only("198.51.100.1", "192.0.2.1")
	v.in("192.0.2.1", "Remove")
	v.browser.Answer(true)
	v.reads("gw (twin at 192.0.2.1) is removed from this page.")
	v.wantScript("gw: ssh is open", states, "after the removal of the first")
	v.unlock(page)
	v.wantScript("gw: ", states, "kept after the removal of the first")
	v.press("Close ssh")
	v.reads("ssh is closed for new connections")
	if v.reaches("198.51.100.1") {
		v.Errorf("%s: the second gateway should be shut", v.browser.Name())
	}
}
