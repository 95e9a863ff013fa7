package page

import (
	"strings"

	"sallyport/spa/lab"
)

// focused is what has the focus: its label or text, or "" if it cannot be seen there.
const focused = `const f = document.activeElement; const s = getComputedStyle(f); const r = f.getBoundingClientRect();
	if (r.height === 0 || (s.outlineStyle === 'none' || parseFloat(s.outlineWidth) < 2)) return '';
	return (f.labels?.length ? f.labels[0].textContent : f.getAttribute('aria-label') ?? f.textContent).trim();`

// tab presses Tab until something has the focus. Each stop before it must be seen.
func (v *view) tab(to string) {
	v.Helper()
	var passed []string
	for range 20 {
		v.browser.Type(lab.KeyTab)
		at := v.browser.Run(focused)
		if at == to {
			return
		}
		passed = append(passed, at)
	}
	v.Fatalf("%s: Tab does not reach %q, but %q", v.browser.Name(), to, passed)
}

func (v *view) wantFocus(at string) {
	v.Helper()
	v.wantScript(at, focused, "has the focus")
}

// keyboard does the whole job with keys alone. After each step the focus is where the next one begins.
func (v *view) keyboard(page string) {
	v.Helper()
	v.fresh(page)
	token := v.keygen("new", "keys", "--allow", "ssh", "--for-browser")
	v.tab("Token")
	v.browser.Type("spa1" + lab.KeyTab + lab.KeyTab + lab.KeyReturn)
	v.reads("This is not a valid token")
	v.wantFocus("Token")
	v.wantScript("true spa1", "const f = document.activeElement; return f.ariaInvalid + ' ' + f.value", "the wrong field")
	v.fill("token", token) // as the paste does
	v.tab("Address of the gateway")
	v.browser.Type("192.0.2.1 2001:db8::1" + lab.KeyTab)
	v.wantFocus("Keep it in this browser, sealed with a passphrase")
	v.browser.Type(" " + lab.KeyTab + passphrase + lab.KeyTab + "another")
	v.browser.Type(lab.KeyReturn)
	v.reads("The passphrases differ.")
	v.wantFocus("The same again")
	v.browser.Type(lab.KeyShift + lab.KeyTab)
	v.wantFocus("New passphrase for this page")
	v.browser.Type(lab.KeyTab)
	v.browser.Run("document.activeElement.select()")
	v.browser.Type(passphrase + lab.KeyReturn)
	v.reads("gw is kept in this browser")
	v.wantFocus("gw")
	v.hears()
	v.tab("Open ssh")
	v.browser.Type(lab.KeyReturn)
	v.reads("ssh is open: connect within")
	v.wantFocus("Open ssh")
	v.browser.Type(lab.KeyTab + lab.KeyTab + " ")
	v.reads("ssh is closed for new connections")
	v.wantFocus("Close ssh")
	v.wantHeard("gw: ssh knocking …", "gw: ssh is open", "gw: ssh knocking …", "gw: ssh is closed")
	v.browser.Type(lab.KeyTab + lab.KeyReturn)
	v.browser.Answer(false)
	v.wantFocus("Remove")
	v.browser.Run("document.getElementById('lock').focus()")
	v.browser.Type(lab.KeyReturn)
	v.reads("Locked.")
	v.wantFocus("Unlock")
	v.browser.Type(lab.KeyTab + "wrong" + lab.KeyReturn)
	v.reads("Wrong passphrase")
	v.wantFocus("Passphrase of this page")
	v.hears()
	v.browser.Type(passphrase + lab.KeyReturn)
	v.reads("Unlocked.")
	v.wantHeard("Unlocking …", "Unlocked.")
	v.wantFocus("gw")
	v.tab("Remove")
	v.browser.Type(lab.KeyReturn)
	v.browser.Answer(true)
	v.reads("gw is removed from this page.")
	v.wantFocus("Add a gateway")
	v.wantScript("0", "return localStorage.length", "what is kept after the removal")
}

// hears begins to listen to what is read aloud.
func (v *view) hears() {
	v.Helper()
	v.browser.Run(`window.heard = []; const at = document.getElementById('say'); window.ear?.disconnect();
		window.ear = new MutationObserver(() => window.heard.push(at.textContent));
		window.ear.observe(at, { childList: true, characterData: true, subtree: true })`)
}

func (v *view) wantHeard(want ...string) {
	v.Helper()
	v.wantScript(strings.Join(want, "|"), "return window.heard.join('|')", "read aloud")
}
