// Vrrp shows on one Linux machine how two gateways share one address: keepalived (VRRP) gives it to one of them, and
// etcd has what they must agree on. Alice knocks once; the gateway that let her in loses power, and the other lets her
// in without another knock. A copy of her packet opens nothing there, and a close at one gateway closes both.
//
// All hosts are network namespaces that the example makes and removes, so nothing else on the machine is touched. It
// needs Go, keepalived, etcd and root, as which keepalived runs its scripts. It exits 0 only if every step succeeded.
//
//	apt-get install keepalived etcd-server
//	go run ./examples/vrrp
package main

import "sallyport/examples/internal/stage"

func main() { stage.Main("vrrp", run) }
