// Fleet shows on one Linux machine how an office decides who may use which of several gateways. Alice's one token opens
// all of them, including one that is added later. Bob's opens one of them, until bob is revoked. An older bundle is put
// back, and a thief has the files of a gateway.
//
// All hosts are network namespaces that the example makes and removes, so nothing else on the machine is touched. It
// needs Go, and root or unprivileged user namespaces. It exits 0 only if every step succeeded.
//
//	go run ./examples/fleet
package main

import "sallyport/examples/internal/stage"

func main() { stage.Main("fleet", run) }
