// Package page is the page with which a browser knocks: one file of HTML, without anything that it would load from
// elsewhere. Its sources are in src, and build.mjs makes the file of them. In site is what a server of the page needs
// besides, so that browsers install it and show it without a network.
package page

import (
	"bytes"
	"embed"
)

//go:embed knock.html
var html []byte

//go:embed site
var site embed.FS

// manifestLink is what the page needs in its head to be installed.
const manifestLink = `<link rel="manifest" href="manifest.webmanifest">` + "\n" +
	`<link rel="icon" href="icon.svg">` + "\n"

// HTML returns the page as one file. Callers must not modify it.
func HTML() []byte { return html }

// Site returns the files of a directory that serves the page, by name.
func Site() map[string][]byte {
	title := []byte("<title>")
	files := map[string][]byte{"index.html": bytes.Replace(html, title, append([]byte(manifestLink), title...), 1)}
	for _, name := range []string{"worker.js", "manifest.webmanifest", "icon.svg"} {
		data, err := site.ReadFile("site/" + name)
		if err != nil {
			panic("page: " + err.Error()) // embedded above
		}
		files[name] = data
	}
	return files
}
