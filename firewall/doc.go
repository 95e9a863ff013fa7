// Package firewall decides in the kernel who may reach which port, and until when.
//
// It owns one nftables table, "inet spa", and only ever subtracts: the guard drops what
// reaches a guarded port of this host without a grant and leaves everything else to the
// host's own rules. For a packet to be admitted both must agree, so a mistake here cannot
// open what the host closes. The price is that a missing guard is an open port; Watch
// puts it back when another tool takes it away.
//
// Words: a guarded port is one that only a grant opens; a target is a service at addresses of
// its own, of machines behind this host or some of the host's; the peer is the other end of a
// flow; the mark is a bit of the connection mark that is ours.
//
// Chains that hooks call, each in the order of its rules:
//
//	knock    prerouting -310  keeps knocks out of connection tracking. What becomes of them
//	                          is the host's affair: a knock port looks like any closed port
//	guard    prerouting -110  after connection tracking, before DNAT:
//	                          1. loopback and trusted interfaces pass
//	                          2. a new flow loses the mark, whoever set it
//	                          3. a packet that claims to come from a guarded port of this
//	                             host is dropped; so is an ICMP error that quotes one,
//	                             unless it belongs to an admitted flow (quoted)
//	                          4. what is for a guarded port here, or for a target, goes to
//	                             door; the rest passes
//	door                      1. a link-local peer must have been admitted on this link (links)
//	                          2. replies pass in flows that began here: those have the mark
//	                          3. packets of flows that the guard admitted pass, by the mark; so
//	                             do the flows carried over a first load. A bare SYN does not
//	                          4. a granted peer passes: its flow gets the mark, and the guard
//	                             remembers it (met)
//	                          5. the rest is closed: dropped or refused
//	claim    prerouting -101  where strangers are refused: leads them to port 0, on which nobody
//	                          can listen, so that the refusal is the kernel's own, byte for byte
//	arrive   input -310       what is delivered to a guarded port, after every rewriting, needs the
//	                          mark or a grant, also if another port leads there.
//	                          Packets assigned to a transparent socket (TPROXY) are refused
//	revive   output -110      what leaves a guarded port goes to begun
//	begun                     1. to a granted peer, or in a flow with the mark, it leaves
//	                          2. what answers in any other flow is dropped
//	                          3. UDP to a peer that was admitted before is dropped: its server
//	                             goes on sending when connection tracking has forgotten the flow
//	                          4. what begins a flow leaves, and the flow gets the mark
//	passing  forward -110     to a target only with the mark or a grant; from a target's port a
//	                          flow begins only on the interface by which routing reaches the
//	                          target, and not from bridge to bridge; then as in begun
//	hush     postrouting 110  after every translation: what has a guarded port and an address of
//	                          this host goes to begun; from a port whose sessions end with the
//	                          grant nothing leaves without one, except resets
//	receipt  output -300      receipts leave untracked, or their receiver would count as answered
//
// Grants are elements with a timeout in grants4 and grants6 (source, protocol, port), for
// targets in reach4 and reach6 (with the destination), for link-local peers in near (with the
// interface). The kernel ends them whatever becomes of the process. Its timeouts stand still
// while the machine sleeps or is paused, so Watch also ends each grant by the wall clock. Who
// holds what is in a ledger, a file that survives the process; it is written before the kernel
// is told. See the ledger type for its laws. A session outlives its grant, but not where another
// table leaves its packets untracked: such a session has no mark, and ends with its grant.
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
// them stand first in PREROUTING, INPUT, FORWARD and OUTPUT. None of them accepts: what the guard
// lets pass goes on to the rules of others. Programs are run by a helper process: see Helper.
//
// Grants are elements of ipsets, which are told over netlink: no program is run for a
// grant, nobody waits for the lock of iptables, and the kernel ends them, up to a second
// late where no daemon runs, because it counts whole seconds. Where there is no ipset, New fails
// and says what to install.
//
// The newer kind of iptables tells of each change; tables of the older one are compared
// twice a second, and so is whether sets were emptied while something lives in them.
//
// Differences from nftables:
//
//   - strangers' packets can only be dropped; mode Admit is refused;
//   - another tool's flush while no daemon runs opens the ports; single elements that another tool
//     takes out of a set are not noticed, and neither is that it empties the sets of who was
//     admitted;
//   - a link-local address has grants on one link at a time, a second is refused; its sessions are
//     told apart by interface, not by port;
//   - no table has a chain behind the translation of sources: a session of a port in Config.Cut
//     that DNAT leads to another machine, and in which only that machine speaks, does not end with
//     its grant by itself (Cut ends it); one that a stranger began while the guard was away does not
//     end with its return, on any port that DNAT leads there. A masqueraded flow from a guarded port
//     needs no mark: its answers go to the machine that it is of;
//   - where br_netfilter is loaded after the guard, a bridged stranger can claim to be a target
//     until the next load; an ICMP error is dropped whatever it quotes where xt_u32 is missing;
//   - after a first load a flow may, for as long as it is carried, speak to every guarded port to which its
//     address had a flow.
//
// Not protected:
//
//   - a machine behind this host that no service lists, also where DNAT publishes it, when it is
//     addressed directly or published by a second port;
//   - what another table lets the host do with a packet once the guard has let it pass, and a
//     program that takes connections on a port that is not guarded and passes them on. The kernel
//     shows no rewriting by BPF socket lookup or by a proxy;
//   - a session that TPROXY handed to the socket of a guarded port while there was no guard;
//   - a UDP session made while the guard was away, if connection tracking forgets it before the
//     guard is back and its server then sends first;
//   - mode Admit: after Cut, a UDP server that goes on sending lets its client answer.
//
// Limits: a flow of the host's own from a guarded port that began while the guard was away is
// cut off until connection tracking has forgotten it. A link-local IPv4 address is granted
// nothing.
package firewall
