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
	"time"
)

// SocketName is the socket's name in the state directory.
const SocketName = "control.sock"

// Beside is the directory in the state directory that has the socket if the server may not make files in that itself:
// it starts as its own user, and the state directory is root's.
const Beside = "run"

// Command is the name of a command.
type Command string

// The commands.
const (
	CommandStatus Command = "status" // one reply with a Status
	CommandGrants Command = "grants" // a reply for each Grant
	CommandWatch  Command = "watch"  // a reply for each Decision, until the client disconnects
	CommandRevoke Command = "revoke" // one reply with a Revoked
	CommandReload Command = "reload" // one reply with a Reloaded
	CommandRecord Command = "record" // puts an Act into the audit log; no reply but the last
)

// Request is a client's request. Revoke needs either a client or a source, and record an act.
type Request struct {
	Command Command    `json:"command"`
	Client  string     `json:"client,omitzero"`
	Source  netip.Addr `json:"source,omitzero"`
	Cut     bool       `json:"cut,omitzero"` // end sessions too
	Act     *Act       `json:"act,omitempty"`
	By      *By        `json:"by,omitempty"`

	UID int `json:"-"` // of the client's process, by the kernel; set by Serve
}

// By is who sent a request, as its client claims.
type By struct {
	LoginUID string `json:"login_uid,omitzero"` // the user that logged in, by /proc/self/loginuid
	SudoUser string `json:"sudo_user,omitzero"` // SUDO_USER
}

// Act is what an administrator did to the gateway's files with a command.
type Act struct {
	Act      string    `json:"act"`                // "new", "set", "rotate", "revoke", "rotate-gate", "teardown"
	Program  string    `json:"program"`            // "spa-keygen"
	Client   string    `json:"client,omitzero"`    // whose key
	Key      string    `json:"key,omitzero"`       // the id of that key; not secret
	Services []string  `json:"services,omitempty"` // that a new client may open
	Settings []string  `json:"settings,omitempty"` // that were changed
	Previous time.Time `json:"previous,omitzero"`  // until when the previous key stays good
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

// errUnknown is the answer to a request that this version does not know. Its text is that of all versions.
var errUnknown = errors.New("unknown request: is spa-server older than this client?")

// IsUnknown reports whether a server has not understood a request: it is older than this program.
func IsUnknown(err error) bool {
	denied, ok := errors.AsType[*Denied](err)
	return ok && denied.Text == errUnknown.Error()
}

// Error returns the text.
func (d *Denied) Error() string { return d.Text }
