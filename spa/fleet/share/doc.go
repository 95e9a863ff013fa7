// Package share defines what gateways that share one address say to each other: the messages between a gateway and its
// agent, and the names and values that the agent puts into a store.
//
// The gateways of a site are its members: they have one server id, so a packet for one is a packet for all. What one
// member spends must be spent for all of them. spa/models/README.md has the algorithm, and package member the server's
// half of it. The agent carries messages (see [Message]) to a store that can create a key if it is absent. All keys of
// a site begin with sallyport/FLEET/share/SITE/ (see [Prefix]):
//
//	spent/n/NAME  a nonce that is spent; value: the token of the attempt
//	spent/i/NAME  a request id that is spent; value: the token of the attempt
//	o/NAME        the outcome for the request id of this name; value: sealed
//	f/NAME        floors, and what ended with them; value: sealed
//	s/MEMBER      a member's session; value: its run. Removed when the session ends
//	a/MEMBER      a revision: the member has every floor up to it in force. Removed when the session ends
//
// NAME, token and run are 16 bytes, written as 32 hex digits. The names of nonces and request ids are HMACs and the
// values of outcomes and floors are sealed, both under a key that neither agent nor store has: see [Key]. The store is
// trusted to create a key once and to deliver floors; if it lies, members act as if each were alone.
package share
