// Package sandbox is what the server gives up once everything is open: its user, its
// groups, every capability but CAP_NET_ADMIN, and each way to get any of it back.
//
// What is taken away, on every thread of the process and on those to come:
//
//	user, group   those of the system user, if there is one and this user namespace maps it
//	groups        none
//	capabilities  CAP_NET_ADMIN permitted and effective; none inheritable or ambient
//	bounding set  empty: no file that is executed can bring a capability back
//	securebits    uid 0 brings no capabilities, and that is locked
//	no_new_privs  set-user-id programs and file capabilities are without effect
//	dumpable      off: no core file with keys in it, no ptrace by processes of the same user
//
// Then all of it is read back from the kernel, thread by thread, and what differs is an
// error: a server that is not sandboxed does not run.
//
// What stays: files that the user may read or write, descriptors that are open,
// ordinary sockets, and a namespace's own firewall, which is what CAP_NET_ADMIN is kept for.
// System calls are not filtered here.
package sandbox

// State says what a process has left after [Drop].
type State struct {
	User         string   // name of the user, or its number where it has none to give
	UID, GID     int      // real, effective and saved
	Capabilities string   // permitted and effective, as in "CAP_NET_ADMIN"
	NoNewPrivs   bool     // always true
	Notes        []string // what could not be given up here and why: a sentence each, for the log
}

// Drop gives up what the package's comment lists, and becomes the system user of that name. Where
// there is no such user, or it has no number in this user namespace, or the process was
// not started as root, the user stays and a note says so. It is to be called once, after
// everything is open and before the first packet is read. After an error the process
// may have lost a part of its privileges and must end.
func Drop(user string) (State, error) { return drop(user) }

// Becomes returns the uid that Drop will leave the process with: what is made before is made for it.
func Becomes(user string) (uid int, err error) { return becomes(user) }

// Require returns an error that names what the server needs and the process lacks of
// CAP_NET_ADMIN and CAP_NET_RAW, and says how to give it. It is to be called before anything is opened.
func Require() error { return require() }
