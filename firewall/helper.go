package firewall

import (
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/keeper"
)

// Helper must be the first call in the main function of a program that makes a [Firewall], and in the TestMain of its
// tests. In a process that New started as the helper or the keeper it does that work and never returns; in any other
// it returns at once.
//
// iptables is a program, and a daemon that can start programs is worth more to an attacker who takes it over. So New
// starts a helper before privileges are dropped, and the daemon sends it requests over a socket: inspect the guard,
// load it, change grants, read the counters, remove it. Messages are typed; the helper checks each value and writes
// the rules itself, so the daemon cannot choose arguments or lines of rules. The helper's environment holds only a
// fixed PATH. It drops the privileges that iptables does not need (see package sandbox) and ends with the daemon.
func Helper() {
	keeper.Serve()
	iptables.Serve()
}
