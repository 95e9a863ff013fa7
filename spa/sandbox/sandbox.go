// Package sandbox drops the privileges of the server's processes once everything is open: user, groups, capabilities,
// files, system calls, and every way to get any of them back.
//
// On all current and future threads of the process it leaves:
//
//	user, group   those of the system user, or [Unnamed]; see Drop
//	groups        none
//	capabilities  CAP_NET_ADMIN permitted and effective; none inheritable or ambient
//	bounding set  empty: executing a file cannot bring a capability back
//	securebits    uid 0 brings no capabilities, and that is locked
//	no_new_privs  set-user-id programs and file capabilities have no effect
//	dumpable      off: no core file with keys in it, no ptrace by processes of the same user
//	files         only the paths of [Files] can be opened (Landlock)
//	system calls  those of a list; any other fails, and some kill the process (seccomp)
//
// A process that was not started as root, as by the systemd units, has no right to clear groups, bounding set and
// securebits: who starts it sets them, and [State] reports them. After no_new_privs the bounding set gives nothing.
//
// Then it reads all of that back from the kernel, thread by thread. Any difference is an error: a server that is not
// sandboxed does not run. If the kernel lacks Landlock or system call filters, the process runs without them, and
// [State] and [Lacks] say so.
//
// [Drop] is for the daemon. The process that runs iptables keeps what those programs need, [DropForPrograms]; the one
// that only holds a socket keeps nothing, [DropAll].
//
// Open descriptors stay, and so does control of the namespace's own firewall: CAP_NET_ADMIN is kept for that.
//
// A call that is not in the list fails with EPERM: another version of the Go runtime or a C library may try one that it
// can do without, and killing the daemon for it would lock everyone out, again at each restart. Calls that no version
// of them makes, and an attacker would need (execve, ptrace, bpf, mount, namespaces, kernel modules, keys, io_uring,
// calls of another architecture), kill the process at once: an attacker gets no second attempt, and the service manager
// logs the signal SIGSYS.
package sandbox

import (
	"errors"
	"io/fs"
	"os"
)

// State describes the privileges that a process has left.
type State struct {
	User         string   // the user's name, or its number if it has none
	UID, GID     int      // real, effective and saved
	Capabilities string   // permitted and effective, as in "CAP_NET_ADMIN"; empty: none
	Bounding     string   // the same for programs that it executes
	NoNewPrivs   bool     // always true
	Landlock     int      // version of Landlock that restricts files; 0: they are not restricted
	Calls        int      // allowed system calls; 0: all
	Notes        []string // what could not be dropped here and why: a sentence each, for the log
}

// Files are the paths that may still be opened, if the kernel has Landlock. A directory includes everything below it,
// even files created later. Paths that do not exist are ignored.
type Files struct {
	Read  []string // to read
	Write []string // to read and write, and to create and remove files in
	Run   []string // to read and execute
	Talk  []string // to send to the Unix sockets in it; older kernels do not restrict that
}

// Unnamed is the number of the user and group that Drop changes to if there is no system user. Distributions, systemd
// and directory services assign no numbers from 65520 to 65533.
const Unnamed = 65525

// Drop drops the privileges that the package comment lists, and changes to the named system user, or to Unnamed if
// there is none. A process that was not started as root keeps its user, and so does one whose user namespace has no
// other user; a note says so. A process that could change its ids but would keep root's, or root's group, gets an error
// that says how to create the user. Call it once, after everything is open and before the first packet is read. After
// an error the process may have lost some of its privileges and must exit.
func Drop(user string, files Files) (State, error) { return drop(user, files) }

// DropForPrograms is for a process that starts programs which change the firewall. It keeps its user, and the process
// and its children keep CAP_NET_ADMIN and, if it has it, CAP_NET_RAW, the files, and the system calls that such
// programs make. Call it once.
func DropForPrograms(files Files) (State, error) { return dropForPrograms(files) }

// DropAll is for a process that waits for orders on open descriptors. It keeps its user, but no capability, no file and
// hardly any system call. Call it once.
func DropAll() (State, error) { return dropAll() }

// Lacks returns a sentence for each part of the sandbox that this kernel lacks.
func Lacks() []string { return lacks() }

// Becomes returns the user and group that Drop will change to, so that files can be created for them.
func Becomes(user string) (uid, gid int, err error) { return becomes(user) }

// As calls do with the file rights of the user that Drop will change to: its effective user and group, no other groups
// and no capability, on all threads. If the process cannot change its user, or Drop would not, do runs with the current
// rights. Until do returns, the process must run nothing else that needs root's rights.
func As(user string, do func() error) error { return as(user, do) }

// OrAs calls do, and calls it again with [As] if root itself lacks the rights to a file, as under a restricted unit. If
// both fail it returns the first error.
func OrAs(user string, do func() error) error {
	first := do()
	if !errors.Is(first, fs.ErrPermission) || os.Geteuid() != 0 {
		return first
	}
	if second := As(user, do); !errors.Is(second, fs.ErrPermission) {
		return second
	}
	return first
}

// Require returns an error if the process lacks CAP_NET_ADMIN or, with raw, CAP_NET_RAW, with advice on how to grant
// them. Call it before anything is opened.
func Require(raw bool) error { return require(raw) }
