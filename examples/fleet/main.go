// Fleet shows on one Linux machine how an office says who may use which of many gateways: an office, three gateways,
// alice, whose one token opens all of them, also one that is added later, and bob, who may use one of them until he is
// revoked. An older bundle is put back, and a thief has the files of a gateway.
//
// They are network namespaces that the example makes and removes again, so nothing else on the machine is touched. It
// needs Go, and root or unprivileged user namespaces. It exits 0 only if every step succeeded.
//
//	go run ./examples/fleet
package main

import "sallyport/examples/internal/stage"

func main() { stage.Main("fleet", run) }
