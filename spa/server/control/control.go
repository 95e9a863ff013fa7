// Package control is how a running server is asked and told: a Unix socket in its state directory,
// on which whoever runs it, and root, may speak.
//
// A client sends one request, a line of JSON, and is sent replies, a line of JSON each; the last
// says so, and carries the error if there was one. The server hangs up on a client that says
// nothing, and on one that does not read; of a watcher it drops what does not fit, and counts it.
//
// The types here are what programs read with --json. They know nothing of the server's own, so that
// what is printed does not change because that does.
package control

import (
	"errors"
	"net/netip"
)

// SocketName is the socket's name in the state directory.
const SocketName = "control.sock"

// Command is what is asked for.
type Command string

// The commands.
const (
	CommandStatus Command = "status" // one reply with a Status
	CommandGrants Command = "grants" // a reply for each Grant
	CommandWatch  Command = "watch"  // a reply for each Decision, until somebody hangs up
	CommandRevoke Command = "revoke" // one reply with a Revoked
	CommandReload Command = "reload" // one reply with a Reloaded
)

// Request is what a client asks. Revoke needs either a client or a source.
type Request struct {
	Command Command    `json:"command"`
	Client  string     `json:"client,omitzero"`
	Source  netip.Addr `json:"source,omitzero"`
	Cut     bool       `json:"cut,omitzero"` // end sessions too
}

// Reply is one line of the server's answer: one of its fields is set, and with the last of an
// answer Done too.
type Reply struct {
	Status   *Status   `json:"status,omitempty"`
	Grant    *Grant    `json:"grant,omitempty"`
	Decision *Decision `json:"decision,omitempty"`
	Missed   uint64    `json:"missed,omitempty"` // decisions that this watcher was not shown, before the next
	Revoked  *Revoked  `json:"revoked,omitempty"`
	Reloaded *Reloaded `json:"reloaded,omitempty"`

	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"` // with Done: why nothing was done
	Hint  string `json:"hint,omitempty"`  // with Error: what to do about it
}

// ErrSilent is the error of Ask where a server takes the request and says nothing: it hangs.
var ErrSilent = errors.New("spa-server does not answer")

// Errors of Dial. Both are wrapped with the socket's path.
var (
	// ErrNotRunning: no server has a socket there.
	ErrNotRunning = errors.New("spa-server is not running")
	// ErrRefused: the server, or the socket's mode, does not let this user ask.
	ErrRefused = errors.New("only root and spa-server's user may use its control socket")
)

// Denied is the error of a server that did not do what it was asked to.
type Denied struct {
	Text string // a line for each thing that is wrong
	Hint string // what to do; may be empty
}

// Error returns the text.
func (d *Denied) Error() string { return d.Text }
