// Package page is the page with which a browser knocks: one file of HTML, without anything that it would load from
// elsewhere. Its sources are in src, and build.mjs makes the file of them.
package page

import _ "embed"

//go:embed knock.html
var html []byte

// HTML returns the page. Callers must not modify it.
func HTML() []byte { return html }
