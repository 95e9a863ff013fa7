// Demo shows on one Linux machine what Sallyport does: a gateway whose port 22 is dark, alice, whose one packet opens
// it to her address only, a stranger who stays outside, a packet that works only once, a grant that ends on time, and
// what the administrator sees.
//
// Gateway, alice and stranger are network namespaces that the demo makes and removes again, so nothing else on the
// machine is touched. It needs Go, and root or unprivileged user namespaces. It exits 0 only if every step succeeded.
//
//	go run ./examples/demo
package main

import "sallyport/examples/internal/stage"

func main() { stage.Main("demo", run) }
