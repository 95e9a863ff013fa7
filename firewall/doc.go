// Package firewall decides in the kernel which addresses may reach which ports, and until when.
//
// It owns one nftables table, "inet spa", and only ever subtracts: the guard drops packets that reach a guarded port
// of this host without a grant, and leaves everything else to the host's own rules. A packet gets through only if
// both agree, so a mistake here cannot open what the host closes. The price is that a missing guard is an open port;
// Watch puts it back when another tool removes it.
//
// Words: a guarded port is one that only a grant opens; a target is a service at addresses of its own, of machines
// behind this host or some of the host's; the peer is the other end of a flow; the mark is our bit of the connection
// mark; a stranger is a peer without a grant. A port is led if a forward sends its flows to another place, and so are
// these flows and their grants; a leg is one such port and its place. At ports where a grant admits one flow, a grant's
// turn is its right to that flow: the turn has come once the flow has begun, and the grant is taken then.
//
// # Packages
//
//	firewall           Firewall: New, Load, Grant, Revoke, Cut, Watch, Reconfigure, Teardown
//	internal/guard     settings of a guard, the Backend interface, and the types that backends share
//	internal/nftables  the backend for nftables, in mode Guard and mode Admit
//	internal/iptables  the backend for iptables, and its helper process
//	internal/ipset     changes ipsets over netlink, for the iptables backend
//	internal/nl        netlink messages, and reports of changed rules
//	internal/keeper    the process that protects the table while no daemon runs
//	internal/ledger    the file of grants, and the grants in memory
//	internal/sessions  lists and ends sessions (sock_diag, connection tracking)
//	internal/statefile opens and locks files in the state directory
//	internal/clock     an alarm by the wall clock, and the time since boot
//	internal/local     local routes, interfaces and routing rules of this host
//	survey             predicts what the host's other rules do with a packet
//
// # Chains
//
// Chains with a hook, and those that they lead to, each in the order of its rules:
//
//	knock    prerouting -310  keeps knocks out of connection tracking. The host decides what
//	                          becomes of them: a knock port looks like any closed port
//	guard    prerouting -110  after connection tracking, before DNAT:
//	                          1. loopback and trusted interfaces pass
//	                          2. a new flow loses the mark, whatever set it
//	                          3. a packet that claims to come from a guarded port of this
//	                             host is dropped; so is an ICMP error that quotes one,
//	                             unless it belongs to an admitted flow (quoted)
//	                          4. packets for a guarded port here, or for a target, go to
//	                             door; the rest passes
//	door                      1. a link-local peer must have been admitted on this link (links)
//	                          2. replies pass in flows that began here: those have the mark
//	                          3. packets of flows that the guard admitted pass, by the mark; so
//	                             do the flows carried over a first load. A bare SYN does not
//	                          4. a granted peer passes: its flow gets the mark, and the guard
//	                             remembers it (met)
//	                          5. the rest is closed: dropped or rejected
//	turn                      at ports where a grant admits one flow, in place of 4: the first packet of
//	                          a flow takes the grant (taken), as one step of the kernel; packets that
//	                          come again pass by both ends of the flow (first). What passes is counted
//	                          and accepted in entry
//	lead     prerouting -102  if ports are forwarded: leads new flows of granted peers on, before
//	                          any other DNAT
//	claim    prerouting -101  if strangers are rejected: leads them to port 0, on which nothing
//	                          can listen, so that the kernel itself refuses them, byte for byte
//	arrive   input -310       packets delivered to a guarded port, after all rewriting, need the
//	                          mark or a grant, even if another port leads there. Packets
//	                          assigned to a transparent socket (TPROXY) are refused; so are
//	                          those that would begin a flow with a program on a forwarded port
//	revive   output -110      packets that leave a guarded port go to begun
//	begun                     1. packets to a granted peer, or in a flow with the mark, leave
//	                          2. replies in any other flow are dropped
//	                          3. UDP to a peer that was admitted before is dropped: its server
//	                             keeps sending after connection tracking has forgotten the flow
//	                          4. a packet that begins a flow leaves, and the flow gets the mark
//	passing  forward -110     packets reach a target only with the mark or a grant. A flow from
//	                          a target's port may begin only on the interface by which routing
//	                          reaches the target, and leaves by another (away); then as in begun
//	mask     postrouting 99   masquerades led flows, where a forward says so
//	hush     postrouting 110  after all translation: packets with a guarded port and an address
//	                          of this host go to begun; from a port whose sessions end with the
//	                          grant, only resets leave without a grant
//	receipt  output -300      receipts leave untracked, so that their receiver cannot reply
//
// # Grants
//
// Grants are elements with a timeout in grants4 and grants6 (source, protocol, port), for targets in reach4 and
// reach6 (with the destination), for link-local peers in near (with the interface). The kernel ends them whether or
// not the daemon runs. Its timeouts stop while the machine sleeps or is paused, so Watch also ends each grant by the
// wall clock. The ledger is a file that records the grants and survives the process; it is written before the kernel
// is changed (see package ledger). A session outlives its grant, unless another table leaves its packets untracked:
// such a session has no mark, and ends with its grant.
//
// A start keeps of the grants in the ledger what a reload of the same change would have kept. So the ledger records
// where a led port leads: its grant ends if the port leads to another place afterwards.
//
// Grants for networks are elements of sets of their own, one for each width (nftables) or for all of them (iptables),
// and only a guard that needs them has rules that look there. The first grant of a width adds its set and rules, and
// leaves the elements of the guard alone: the cost does not grow with the number of grants. With iptables that runs
// programs, so the guard has these rules as soon as a client's file allows such grants (Config.Networks).
//
// # When other tools remove the guard
//
// If the kernel can (Linux 6.9), the table belongs to the daemon's netlink socket: no other process can change or
// flush it. When the owner's socket is closed, for instance because the daemon was killed, the table stays, but any
// tool can flush it. So a second process, the keeper, holds the same socket. It has no capabilities and does nothing;
// it ends when the guard is removed, when the next daemon has taken over the table, or when its file in the state
// directory is removed. If the keeper is killed too, the table stays until a tool flushes it, and the next daemon
// takes it over.
//
// Changes that the kernel does not allow in place happen behind a second guard, the standby table ("inet spa-relay"),
// which the kernel deletes with the daemon's socket. So a table that has no owner, or is a keeper's, becomes ours
// without a moment in which a packet passes. Teardown cannot remove a table that belongs to a running daemon: it
// records the teardown in the ledger and wakes the daemon.
//
// With PersistFile the table has no owner, because the administrator's own rule file holds the guard (Rules). The two
// exclude each other: a table that has an owner makes the whole file fail to load. With PersistFile, and on older
// kernels, Watch restores the guard and the live grants after another tool removes them.
//
// # Forwards
//
// A forwarded port (Config.Forwards) is a guarded port of this host that leads to a machine behind it or to another
// port here. Guard and door decide on its packets as on those for any other guarded port; then lead rewrites the
// destination of the flows of granted peers. The place that it leads to is guarded as well, and a grant for the
// forwarded port does not open it: passing and arrive let only led flows through, which they recognise by the mark and
// by the flow's original port. iptables does the same in the table nat, with the chains spa-lead and spa-mask.
//
// # Ends of sessions
//
// On the ports of Config.Cut a session ends with its grant. The kernel does that alone, for TCP and UDP, for local
// servers and for those that DNAT leads to, whichever side sends. There, a session from before the first load ends
// when it is no longer carried.
//
// Cut ends the sessions of grants that were revoked. It destroys local sockets, so that their servers notice, and
// deletes the entries in connection tracking; a UDP flow to a server here loses its mark instead, and whatever its
// server still sends is dropped. Cut touches only sessions that the guard let in, and none that another live grant
// covers.
//
// # Mode Admit
//
// For a host that drops by default: grants are elements, marked by the comment "sallyport", of sets in the
// administrator's own table, whose rules decide what they open. Our table then only keeps receipts untracked. Knock
// ports get no rule: they are as dark as all other ports of such a host, and would stand out if they were darker. The
// administrator's own elements are never changed; one for the same address and port as a grant stands in for ours as
// long as it lasts. When the sets are emptied or replaced, live grants are put back at once; while a set is missing
// nothing can be granted, and the error has the command that makes it. There is no first load, nothing to confirm,
// and no Config.Cut.
//
// # The iptables backend
//
// If the kernel has no nftables, the same guard is made of chains named spa-... in the tables raw and mangle, for
// IPv4 and IPv6, by iptables-nft or iptables-legacy. Jumps to them stand first in PREROUTING, INPUT, FORWARD and
// OUTPUT. None of them accepts: packets that the guard lets pass go on to the rules of others. A helper process runs
// the programs: see Helper.
//
// Grants are elements of ipsets, which are changed over netlink: a grant runs no program and does not wait for the
// lock of iptables, and the kernel ends it, up to a second late if no daemon runs, because it counts whole seconds.
// Without ipset, New fails and names what to install.
//
// The kernel reports each change of iptables-nft tables; legacy tables are compared twice a second, and so are the
// sets while they hold anything: each has a sentinel element, which is gone if another tool emptied it.
//
// Differences from nftables:
//
//   - strangers' packets can only be dropped; mode Admit is refused;
//   - another tool's flush while no daemon runs opens the ports; the daemon does not notice when another tool deletes
//     single elements of a set, or empties the sets of admitted peers;
//   - a link-local address can have grants on only one link at a time, and one on a second link is refused; its
//     sessions are told apart by interface, not by port;
//   - no table has a chain after source translation. A session of a port in Config.Cut that DNAT leads to another
//     machine, and in which only that machine sends, does not end with its grant until Cut ends it; one that a
//     stranger began while the guard was away does not end when the guard returns, on any port that DNAT leads there.
//     A masqueraded flow from a guarded port needs no mark: its replies go to the machine that began it;
//   - if br_netfilter is loaded after the guard, and takes tagged frames for those of a VLAN interface
//     (bridge-nf-pass-vlan-input-dev), a bridged stranger can claim to be a target until the next load;
//   - without xt_u32, an ICMP error is dropped whatever it quotes;
//   - after a first load, a carried flow may send to every guarded port to which its address had a flow, for as long
//     as it is carried.
//
// # Limits
//
// Not protected:
//
//   - a machine behind this host that no service lists, even if DNAT publishes it, when it is addressed directly or
//     published by a second port;
//   - a target against a neighbor that forges its address and has an accomplice on another interface: the accomplice's
//     datagrams pass as replies;
//   - what another table makes the host do with a packet that the guard let pass, and a program that accepts
//     connections on a port that is not guarded and forwards them. The kernel shows no rewriting by BPF socket lookup
//     or by a proxy;
//   - a session that TPROXY handed to the socket of a guarded port while there was no guard;
//   - sessions through a forwarded port while another tool has removed the guard: nothing translates their packets
//     then, and a packet that is sent in that time may end them;
//   - a UDP session made while the guard was away, if connection tracking forgets it before the guard is back and its
//     server then sends first; nor one whose grant had ended before another tool removed the guard;
//   - mode Admit: after Cut, a UDP server that keeps sending lets its client reply.
//
// A flow of the host's own from a guarded port that began while the guard was away is cut off until connection
// tracking has forgotten it. A link-local IPv4 address is granted nothing.
package firewall
