package page

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"sallyport/spa/lab"
)

// anyToken returns a token for a gateway that is not there.
func anyToken(server byte, services, ports int) string {
	var b []byte
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	bytes := func(n int, x byte) { b = append(b, strings.Repeat(string([]byte{x}), n)...) }
	for _, s := range []string{"gw", "phone", "192.0.2.99", ""} {
		text(s)
	}
	b = append(b, 1, 0xf2, 0xf9)
	bytes(16, server)
	bytes(32, 2)
	bytes(8, 3)
	bytes(32, 4)
	b = append(b, 1, byte(services))
	for i := range services {
		text(fmt.Sprintf("s%031d", i))
		b = append(b, byte(ports))
		for k := range ports {
			text(fmt.Sprintf("tcp/%d-%d", 10000+k, 20000+i))
		}
	}
	sum := sha256.Sum256(append([]byte("sallyport 1 token"), b...))
	return "spa1" + base64.RawURLEncoding.EncodeToString(append(b, sum[:8]...))
}

// fresh opens the page in a browser that keeps nothing.
func (v *view) fresh(page string) {
	v.Helper()
	v.browser.Go(page)
	v.browser.Run("localStorage.clear()")
	v.browser.Go(page)
}

// enter fills the form that adds a gateway. With keep, the browser should keep it under a new passphrase.
func (v *view) enter(token string, keep bool) {
	v.Helper()
	v.browser.Run("document.getElementById('adding').open = true")
	v.fill("token", token)
	v.fill("hosts", "192.0.2.1")
	if keep {
		v.browser.Run("document.getElementById('keep').click()")
		v.fill("new", passphrase)
		v.fill("again", passphrase)
	}
}

func (v *view) wantScript(want, script, what string) {
	v.Helper()
	if got := v.browser.Run(script); got != want {
		v.Errorf("%s: %s: got %s, want %s", v.browser.Name(), what, got, want)
	}
}

// itself is the page as its own script has it: Firefox shows other scripts another one.
const itself = "const page = window.wrappedJSObject ?? window; "

const cards = "return document.querySelectorAll('.card').length"

// hostile: with the longest token, a full store, hidden fields, a lock and a device that slept, the page does what it
// says.
func (v *view) hostile(page string) {
	v.Helper()
	v.fresh(page)
	v.enter(anyToken(1, 128, 64), true)
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.wantScript("128", "return document.querySelectorAll('.service').length", "services of the longest token")

	v.fresh(page)
	v.browser.Run("document.getElementById('keep').click(); document.getElementById('new').focus()")
	v.browser.Type("short")
	v.browser.Run("document.getElementById('keep').click()")
	v.enter(anyToken(1, 1, 1), false)
	v.press("Add")
	v.reads("gw is there until you close or reload this page")

	v.fill("token", "spa1secret")
	v.press("Clear")
	v.reads("Cleared.")
	v.wantScript("", "return [...document.querySelectorAll('input, textarea')].map((f) => f.type === 'checkbox' ? '' : "+
		"f.value).join('')", "fields after the lock")

	v.browser.Run(`for (let n = 1 << 20; n > 0;) {
		try { localStorage.setItem('other' + localStorage.length, 'x'.repeat(n)); } catch { n >>= 1; } }`)
	v.enter(anyToken(1, 1, 1), true)
	v.press("Add")
	v.reads("The browser has no room to keep it. gw is there until you close or reload this page.")

	v.browser.Run(itself + "const { Date } = page; const { now } = Date; Date.now = () => now.call(Date) + 11 * 60000")
	v.press("Open s" + strings.Repeat("0", 31))
	v.reads("Cleared.")
	v.wantScript("0", cards, "gateways after the device slept")
}

// windows: this window does not overwrite what another one has kept or forgotten, at whatever moment. The other window
// is stood in for by its changes, of which the browser has not told yet.
func (v *view) windows(page string) {
	v.Helper()
	const theirs = "localStorage.setItem('sallyport', 'theirs')"
	const kept = "return localStorage.getItem('sallyport')"
	v.fresh(page)
	v.enter(anyToken(1, 1, 1), true)
	v.browser.Run("document.querySelector('#add button.main').click(); " + theirs)
	v.reads("Another window changed what this browser keeps")
	v.wantScript("theirs", kept, "while the passphrase was worked on")

	v.fresh(page)
	v.enter(anyToken(1, 1, 1), true)
	v.press("Add")
	v.reads("gw is kept in this browser")
	ours := v.browser.Run(kept)
	v.browser.Run(theirs)
	v.enter(anyToken(2, 1, 1), false)
	v.browser.Run("document.getElementById('keep').click()")
	v.press("Add")
	v.reads("Another window changed what this browser keeps")
	v.wantScript("theirs", kept, "after a second token")
	v.wantScript("1", cards, "gateways that this window alone has")

	v.browser.Run("localStorage.setItem('sallyport', " + strconv.Quote(ours) + "); return ''")
	v.fill("passphrase", passphrase)
	v.press("Unlock")
	v.reads("Unlocked.")
	v.wantScript("2", cards, "gateways after unlocking")

	v.browser.Go(page)
	v.fill("passphrase", passphrase)
	v.browser.Run("document.querySelector('#locked button.main').click(); localStorage.clear()")
	v.reads("Meanwhile, what this browser keeps was changed or forgotten.")
	v.wantScript("null", kept, "forgotten while unlocking")

	v.fresh(page)
	v.enter(anyToken(1, 1, 1), true)
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.enter(anyToken(1, 1, 1), false)
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.wantScript("true", "return localStorage.getItem('sallyport') !== null", "kept after the same token again")
}

// halfDead: an address that never answers does not hold up the other, and an end of the lock ends what runs.
func (v *view) halfDead(page string) {
	v.Helper()
	v.fresh(page)
	v.browser.Run(itself + `page.made = []; const { RTCPeerConnection } = page;
		page.RTCPeerConnection = function (...args) {
			const c = new RTCPeerConnection(...args); page.made.push(c); return c; }`)
	v.enter(v.keygen("new", "half", "--allow", "ssh", "--for-browser"), false)
	v.fill("hosts", "192.0.2.1 2001:db8::99")
	v.press("Add")
	v.press("Open ssh")
	v.reads("ssh is open: connect within")
	v.wantScript("2", itself+"return page.made.length", "connections until one address of two has answered")
	v.browser.Run(itself + "page.made = []")
	v.keygen("revoke", "half")
	v.press("Open ssh")
	lab.Eventually(v, "a knock", func() bool { return v.browser.Run(itself+"return page.made.length") != "0" })
	v.press("Clear")
	lab.Eventually(v, "the knock to end", func() bool {
		return v.browser.Run(itself+"return page.made.every((c) => c.signalingState === 'closed')") == "true"
	})
	v.wantScript("Cleared.", "return document.getElementById('say').textContent", "said after the lock")
}
