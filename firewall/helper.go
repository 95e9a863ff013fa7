package firewall

import (
	"sallyport/firewall/internal/iptables"
	"sallyport/firewall/internal/keeper"
)

// Helper is the first thing that the main function of a program calls that makes a
// [Firewall], and the TestMain of its tests. Where the process was started by New to run
// iptables, it does that and does not return; otherwise it returns at once.
//
// iptables is a program, and a daemon that can start programs is worth more to who takes it
// over than one that cannot. So New starts a helper before privileges are dropped, and the
// daemon asks it over a socket for one of a few things: look at the guard, load it, change
// grants, count, remove it. Messages are typed; the helper checks each value and writes the
// rules itself, so nothing that the daemon says becomes an argument or a line of its
// choosing. It has an empty environment but for a fixed PATH, gives up what iptables does not
// need (see package sandbox), and ends with the daemon.
func Helper() {
	keeper.Serve()
	iptables.Serve()
}
