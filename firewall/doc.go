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
//	                          that was made while the guard was away
//	receipt  output -300      receipts leave untracked, or their receiver would count as answered
//
// Grants are elements with a timeout, so the kernel ends them whatever becomes of the
// process. Who holds what is in a ledger, a file that survives the process; it is written
// before the kernel is told. See the ledger type for its laws. A session outlives its grant,
// but not where another table leaves its packets untracked: such a session has no mark, and
// ends with its grant.
//
// Not protected: a port reached by routing to an address behind this host that no service
// lists; what another table lets the host do with a packet once the guard has let it pass;
// a UDP flow made while the guard was away in which the server goes on sending; an address
// that is local by another routing table than "local". That is so for the addresses of a
// VRF before Linux 6.16 or so: whether an address is the host's own is asked of the table
// "local" alone there. List such addresses in the addresses of the service.
package firewall
