package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"sallyport/spa/lab"
)

// unreadable lists texts whose contrast with what is behind them is below 4.5 (WCAG 2, level AA), and edges of controls
// below 3.
const unreadable = `
	const rgb = (s) => s.match(/[\d.]+/g).map(Number);
	const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
	const light = ([r, g, b]) => [r, g, b].map((x) => linear(x / 255))
		.reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
	const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
		return (x + 0.05) / (y + 0.05); };
	const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
		if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
	const bad = [];
	for (const e of document.querySelectorAll('body *')) {
		const s = getComputedStyle(e);
		if (e.getClientRects().length === 0 || e.ariaDisabled === 'true') continue;
		const text = e.matches('input, textarea, select') ||
			[...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
		if (text && ratio(rgb(s.color), behind(e)) < 4.5) bad.push('text of ' + e.outerHTML.slice(0, 60));
		const control = e.matches('input, textarea, select, button:not(.main)') &&
			e.type !== 'checkbox' && e.type !== 'file';
		const edge = ratio(rgb(s.borderTopColor), behind(e.parentElement));
		if (control && edge < 3) bad.push('edge of ' + e.outerHTML.slice(0, 60));
	}
	return bad.join('; ')`

// wide is how much wider than the window the page is, and the first element that is.
const wide = `const w = document.documentElement.clientWidth; const d = document.scrollingElement.scrollWidth - w;
	return d <= 0 ? 'fits' : d + ' ' + [...document.querySelectorAll('body *')].find((e) =>
		e.getBoundingClientRect().right > w + 1)?.outerHTML.slice(0, 80)`

// bare: in a browser that lets pages store nothing, the page works and does not offer to keep anything. A file that is
// not a picture does not silence it. Chromium is made to be such a browser: Debian's has no QR code detector either.
func (v *view) bare(page string) {
	v.Helper()
	if v.browser.Name() != "chromium" {
		return
	}
	v.browser.Tool("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": `
		Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied', 'SecurityError'); } });
		window.BarcodeDetector = class { detect() { return []; } };`})
	v.browser.Go(page)
	v.reads("Or a picture of its QR code")
	v.browser.Run(`const files = new DataTransfer(); files.items.add(new File(['no picture'], 'a.png'));
		const field = document.getElementById('picture'); field.files = files.files; field.onchange()`)
	v.reads("There is no QR code in that picture")
	v.wantScript("true", "return document.getElementById('keep-row').hidden", "the offer to keep is hidden")
	v.enter(v.keygen("new", "bare", "--allow", "ssh", "--for-browser"), false)
	v.press("Add")
	v.reads("gw is there until you close or reload this page.")
	v.press("Open ssh")
	v.reads("ssh is open: connect within")
	v.browser.Tool("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": "delete window.RTCPeerConnection"})
	v.browser.Go(page)
	v.reads("WebRTC is switched off in this browser")
}

// unplugged: a browser without a network says so at once. Chromium waits.
func (v *view) unplugged(page string) {
	v.Helper()
	if v.browser.Name() != "firefox" {
		return
	}
	for _, dev := range []string{"vc", "vd"} {
		lab.Must(v, v.gw.Client.SetDown(dev))
	}
	v.fresh(page)
	v.enter(anyToken(1, 1, 1), false)
	v.press("Add")
	v.press("Open s" + strings.Repeat("0", 31))
	v.reads("The browser has no way to send datagrams")
}

// seen: in dark and in light, at 320 pixels, with letters of twice the size and by a screen reader, the page in each of
// its states can be read. It is served by HTTP, and so can tell that the clock is wrong.
func (v *view) seen(page string) {
	v.Helper()
	if v.browser.Name() != "chromium" {
		return // Firefox has no such tools without more programs
	}
	server := v.serve("127.0.0.1:8081", http.FileServer(http.Dir(filepath.Dir(strings.TrimPrefix(page, "file://")))))
	defer server.Close()
	v.fresh("http://127.0.0.1:8081/" + filepath.Base(page))
	v.browser.Run("for (const d of document.querySelectorAll('details')) d.open = true")
	v.enter("spa1", true)
	v.press("Add")
	v.reads("This is not a valid token")
	v.browser.Run("for (const d of document.querySelectorAll('#add [id$=-row]')) d.hidden = false")
	v.wantSeen("the form")
	v.enter(v.keygen("new", "seen", "--allow", "ssh,web"), false)
	v.browser.Run("document.getElementById('keep').checked = true; document.getElementById('keep').onchange()")
	v.press("Add")
	v.reads("gw is kept in this browser")
	v.press("Open ssh")
	v.reads("ssh is open: connect within")
	v.browser.Run("const { now } = Date; Date.now = () => now.call(Date) - 7200000")
	v.press("Open web")
	v.reads(" s behind: set it to the network's time.")
	v.browser.Run("Date.now = () => new Date().getTime()")
	v.wantSeen("a gateway")
	v.press("Lock")
	v.wantSeen("locked")
}

func (v *view) wantSeen(what string) {
	v.Helper()
	v.wantNamed(what)
	for _, scheme := range []string{"light", "dark"} {
		v.browser.Tool("Emulation.setEmulatedMedia", map[string]any{"features": []any{
			map[string]any{"name": "prefers-color-scheme", "value": scheme}}})
		v.wantScript("", unreadable, what+", "+scheme)
		v.shots(fmt.Sprintf("%.6s-%s", what, scheme))
	}
	v.browser.Tool("Emulation.setEmulatedMedia", map[string]any{"features": []any{}})
	for width, size := range map[int]string{320: "100%", 640: "200%"} {
		v.browser.Tool("Emulation.setDeviceMetricsOverride", map[string]any{
			"width": width, "height": 640, "deviceScaleFactor": 1, "mobile": true})
		v.browser.Run("document.documentElement.style.fontSize = '" + size + "'")
		v.wantScript("fits", wide, fmt.Sprintf("%s at %d pixels, letters of %s", what, width, size))
	}
	v.browser.Run("document.documentElement.style.fontSize = ''")
	v.browser.Tool("Emulation.clearDeviceMetricsOverride", map[string]any{})
	v.wantScript("0", "return document.getAnimations().length", what+": movements")
}

// wantNamed checks the tree that screen readers get: each control and heading has a name, and only one part of the page
// is read aloud when it changes.
func (v *view) wantNamed(what string) {
	v.Helper()
	type value struct {
		Value any `json:"value"`
	}
	var tree struct {
		Nodes []struct {
			Ignored    bool
			Role, Name value
			Properties []struct {
				Name  string
				Value value
			}
		}
	}
	v.browser.Tool("Accessibility.enable", map[string]any{})
	lab.Must(v, json.Unmarshal(v.browser.Tool("Accessibility.getFullAXTree", map[string]any{}), &tree))
	named := []string{"button", "textbox", "checkbox", "combobox", "heading", "region", "form", "progressbar",
		"DisclosureTriangle", "status"}
	seen := map[any]int{}
	live := 0
	for _, n := range tree.Nodes {
		if n.Ignored {
			continue
		}
		role, _ := n.Role.Value.(string)
		seen[role]++
		if slices.Contains(named, role) && role != "status" && (n.Name.Value == nil || n.Name.Value == "") {
			v.Errorf("%s: a %s has no name", what, role)
		}
		for _, p := range n.Properties {
			if p.Name == "live" && p.Value.Value == "polite" && role == "status" {
				live++
			}
		}
	}
	if live != 1 || seen["button"] < 2 || seen["heading"] < 2 || seen["main"] != 1 {
		v.Errorf("%s: %d parts are read aloud; the tree has %v", what, live, seen)
	}
	v.wantScript("en 1", "return document.documentElement.lang + ' ' + document.querySelectorAll('h1').length", what)
}
