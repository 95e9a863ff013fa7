// Package firewall decides in the kernel who may reach which port, and until when.
//
// It owns one nftables table, "inet spa", and only ever subtracts: the guard drops what
// reaches a guarded port of this host without a grant and leaves everything else to the
// host's own rules. For a packet to be admitted both must agree, so a mistake here cannot
// open what the host closes. The price is that a missing guard is an open port; Watch
// puts it back when another tool takes it away.
//
// Chains, each in the order of its rules:
//
//	knock    prerouting -310  knock ports that nothing else serves are dropped before
//	                          connection tracking; the sniffer has seen them by then
//	guard    prerouting -110  after connection tracking, before DNAT:
//	                          1. loopback, trusted interfaces, replies to the host's own flows
//	                             and what is not for this host pass
//	                          2. ports that are not guarded pass
//	                          3. flows that the guard admitted before pass, by a bit of the
//	                             connection mark; so do the flows carried over a first load.
//	                             A packet that would begin a new one does not
//	                          4. granted sources pass, and their flows get the bit
//	                          5. the rest is dropped, or rejected
//	revive   output -110      a server that keeps sending must not bring a flow back to life
//	                          that was made while the guard was away, or that was cut
//	hush     postrouting 110  after DNAT was undone: from a port whose sessions end with the
//	                          grant nothing leaves to who has none, but resets
//	receipt  output -300      receipts leave untracked, or their receiver would count as answered
//
// Grants are elements with a timeout, so the kernel ends them whatever becomes of the
// process. Who holds what is in a ledger, a file that survives the process; it is written
// before the kernel is told. See the ledger type for its laws. A session outlives its grant,
// but not where another table leaves its packets untracked: such a session has no mark, and
// ends with its grant.
//
// # Who takes the guard away
//
// Where the kernel can (Linux 6.9) the table belongs to the daemon's netlink socket: nobody
// else can change or flush it, and who tries is refused. A table whose owner's socket is
// closed, as that of a killed process is, stays, but anybody can flush it. So a second
// process, the keeper, holds the same socket. It has no capability and does nothing; it
// ends when the guard is taken away, when the next daemon has taken the table over, or when
// its file in the state directory is removed. Where the keeper is killed too, the table
// stays until somebody flushes it, and the next daemon makes it its own.
//
// What the kernel does not let be changed in place is exchanged behind a second guard, the
// relay, in a table that goes with the daemon's socket: a table that has no owner, or is a
// keeper's, becomes ours without an instant in which a packet passes. Teardown cannot
// remove what belongs to a daemon that runs: it leaves a mark in the ledger and wakes it.
//
// With PersistFile the table has no owner, because the administrator's own rule file holds
// the guard (Rules). The two exclude each other: a table that has an owner makes his file
// fail as a whole. There, and on older kernels, Watch puts back what another tool takes
// away, and live grants with it.
//
// # Ends of sessions
//
// On the ports of Config.Cut a session ends with its grant: the kernel alone does that, for
// TCP and UDP, for local servers and for those that DNAT leads to, whoever speaks. A
// session that was there before the first load ends there when it is carried no longer.
//
// Cut ends the sessions of grants that were revoked. A local socket is destroyed, so that
// its server is told; the entry in connection tracking is deleted; a UDP flow to a server
// here loses its mark instead, and what its server goes on sending is dropped. Only what
// the guard let in is touched, and nothing that another live grant covers.
//
// # Mode Admit
//
// For a host that drops by default: grants are elements, marked by the comment "sallyport",
// of sets in the administrator's own table, and his rules say what they open. Our table
// then only keeps receipts untracked. Knock ports get no rule: they are as dark as all
// other ports of such a host, and would stand out if they were darker. His own elements are
// never changed; one that he has for the same address and port stands in for ours as long
// as it lasts. When his sets are emptied or replaced, live grants are put back at once;
// while they are missing nothing can be granted, and the error has the line that makes them.
// There is no first load, nothing to confirm, and no Config.Cut.
//
// # By iptables
//
// Where the kernel has no nftables the same guard is made of chains named spa-... in the
// tables raw and mangle, for IPv4 and IPv6, by iptables-nft or iptables-legacy. Jumps to
// them stand first in PREROUTING and OUTPUT. None of them accepts: what the guard lets pass
// goes on to the rules of others. Programs are run by a helper process: see Helper.
//
// Grants are elements of ipsets, which are told over netlink: no program is run for a
// grant, nobody waits for the lock of iptables, and the kernel ends them, up to a second
// late, for it counts whole seconds. Without ipset grants are rules that know their dates:
// weaker, because the wall clock ends them, and slower, because a chain is exchanged for
// each. A grant that finds the lock held is put in place as soon as it is free, and is
// answered before; so is a revocation.
//
// The newer kind of iptables tells of each change; tables of the older one are compared
// twice a second, and so is whether sets were emptied while something lives in them.
//
// Not so as with nftables: strangers' packets can only be dropped; mode Admit is refused;
// another tool's flush while no daemon runs opens the ports; a session of a port in
// Config.Cut that DNAT leads on, and in which only the other machine speaks, does not end
// with its grant by itself (Cut ends it); single elements that another tool takes out of a set
// are not noticed; after a first load a flow may, for ten minutes, speak to every guarded port
// to which its address had a flow.
//
// Not protected: a port reached by routing to an address behind this host that no service
// lists; what another table lets the host do with a packet once the guard has let it pass;
// a UDP flow made while the guard was away in which the server goes on sending; the same
// where such a flow was forgotten by connection tracking before its server sent again, also
// on a port whose sessions are cut, and after Cut in mode Admit; an address
// that is local by another routing table than "local". That is so for the addresses of a
// VRF before Linux 6.16 or so: whether an address is the host's own is asked of the table
// "local" alone there. List such addresses in the addresses of the service.
package firewall
