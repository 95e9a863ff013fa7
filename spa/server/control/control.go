// Package control is the control socket of a running server: a Unix socket in its state directory, for root and for the
// user that the server runs as.
//
// A client sends one request, a line of JSON, and receives replies, a line of JSON each. The last one has Done set, and
// an error if the command failed. The server disconnects clients that send nothing or do not read; for a watcher it
// drops and counts the decisions that do not fit.
//
// The types here are the format of --json. They are separate from the server's own types, so that a change there does
// not change the output.
package control

import (
	"errors"
	"net/netip"
)

// SocketName is the socket's name in the state directory.
const SocketName = "control.sock"

// Command is the name of a command.
type Command string

// The commands.
const (
	CommandStatus Command = "status" // one reply with a Status
	CommandGrants Command = "grants" // a reply for each Grant
	CommandWatch  Command = "watch"  // a reply for each Decision, until the client disconnects
	CommandRevoke Command = "revoke" // one reply with a Revoked
	CommandReload Command = "reload" // one reply with a Reloaded
)

// Request is a client's request. Revoke needs either a client or a source.
type Request struct {
	Command Command    `json:"command"`
	Client  string     `json:"client,omitzero"`
	Source  netip.Addr `json:"source,omitzero"`
	Cut     bool       `json:"cut,omitzero"` // end sessions too
}

// Reply is one line of the server's answer: one of its fields is set, and in the last one Done too.
type Reply struct {
	Status   *Status   `json:"status,omitempty"`
	Grant    *Grant    `json:"grant,omitempty"`
	Decision *Decision `json:"decision,omitempty"`
	Missed   uint64    `json:"missed,omitempty"` // decisions that this watcher lost before the next one
	Revoked  *Revoked  `json:"revoked,omitempty"`
	Reloaded *Reloaded `json:"reloaded,omitempty"`

	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"` // with Done: why nothing was done
	Hint  string `json:"hint,omitempty"`  // with Error: what to do about it
}

// ErrSilent is returned by Ask if a server accepts the request but does not answer: it hangs.
var ErrSilent = errors.New("spa-server does not answer")

// Errors of Dial. Both are wrapped with the socket's path.
var (
	// ErrNotRunning: no server has a socket there.
	ErrNotRunning = errors.New("spa-server is not running")
	// ErrRefused: the server, or the socket's mode, does not admit this user.
	ErrRefused = errors.New("only root and spa-server's user may use its control socket")
)

// Denied is the error of a server that did not execute a request.
type Denied struct {
	Text string // a line for each problem
	Hint string // what to do; may be empty
}

// Error returns the text.
func (d *Denied) Error() string { return d.Text }
