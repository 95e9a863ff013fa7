// Package sandbox is what the processes of the server give up once everything is open: user,
// groups, capabilities, files, system calls, and each way to get any of it back.
//
// What is taken away, on every thread of the process and on those to come:
//
//	user, group   those of the system user, or [Unnamed]; see Drop
//	groups        none
//	capabilities  CAP_NET_ADMIN permitted and effective; none inheritable or ambient
//	bounding set  empty: no file that is executed can bring a capability back
//	securebits    uid 0 brings no capabilities, and that is locked
//	no_new_privs  set-user-id programs and file capabilities are without effect
//	dumpable      off: no core file with keys in it, no ptrace by processes of the same user
//	files         no path can be opened but those of [Files] (Landlock)
//	system calls  those of a list; any other fails, and some end the process (seccomp)
//
// Then all of it is read back from the kernel, thread by thread, and what differs is an
// error: a server that is not sandboxed does not run. Where the kernel has no Landlock or no
// filters of system calls, the process does without, and [State] and [Lacks] say so.
//
// That is the daemon's part, [Drop]. The process that runs iptables keeps what those programs
// need, [DropForPrograms]; the one that only holds a socket keeps nothing, [DropAll].
//
// What stays: descriptors that are open, and a namespace's own firewall, which is what
// CAP_NET_ADMIN is kept for.
//
// Of a call that is not in the list the answer is EPERM: a Go runtime or a C library of another
// version may try one that can be done without, and killing a daemon for it would shut everybody
// out, again at each restart. What no version of them calls, and an attacker would need
// (execve, ptrace, bpf, mount, namespaces, kernel modules, keys, io_uring, calls of another
// architecture), ends the process at once: there is no second try, and the service manager logs
// the signal SIGSYS.
package sandbox

import (
	"errors"
	"io/fs"
	"os"
)

// State says what a process has left.
type State struct {
	User         string   // name of the user, or its number where it has none to give
	UID, GID     int      // real, effective and saved
	Capabilities string   // permitted and effective, as in "CAP_NET_ADMIN"; empty: none
	Bounding     string   // what a program that it executes could have, in the same form
	NoNewPrivs   bool     // always true
	Landlock     int      // version of Landlock's interface by which files are restricted; 0: they are not
	Calls        int      // system calls that are allowed; 0: all
	Notes        []string // what could not be given up here and why: a sentence each, for the log
}

// Files is what may be opened by path from then on, where the kernel has Landlock. A directory
// stands for all that is below it, also for files that are put there later. A path that does not
// exist is passed over.
type Files struct {
	Read  []string // to be read
	Write []string // to be read and written, and files there to be made and removed
	Run   []string // to be read and executed
}

// Unnamed is the number of the user and group that Drop becomes where there is no system user. From
// 65520 to 65533 nobody hands out any: not distributions, nor systemd, nor directory services.
const Unnamed = 65525

// Drop gives up what the package's comment lists, and becomes the system user of that name, or
// Unnamed where there is none. A process that was not started as root stays who it is, and so does one
// whose user namespace has no other user; a note says so. A process that could change its ids but would keep root's, or
// root's group, gets an error that says how to make the user. Call it once, after
// everything is open and before the first packet is read. After an error the process
// may have lost a part of its privileges and must end.
func Drop(user string, files Files) (State, error) { return drop(user, files) }

// DropForPrograms is for a process that starts programs which change the firewall. It stays the
// user that it is, and they and it keep CAP_NET_ADMIN and CAP_NET_RAW, the files, and the system
// calls that such programs make. It is to be called once.
func DropForPrograms(files Files) (State, error) { return dropForPrograms(files) }

// DropAll is for a process that waits for orders on descriptors that are open, and for their end.
// It stays the user that it is, and keeps no capability, no file and next to no system call. It is
// to be called once.
func DropAll() (State, error) { return dropAll() }

// Lacks returns a sentence for each part of the sandbox that this kernel does not have.
func Lacks() []string { return lacks() }

// Becomes returns the user and group that Drop will leave the process with: what is made before is
// made for them.
func Becomes(user string) (uid, gid int, err error) { return becomes(user) }

// As calls do with the files' rights of the user that Drop will leave the process with: its effective user and
// group, no other groups and no capability, on all threads. If the process
// cannot change its user, or Drop would not, do runs with the rights that the process has. Until do returns, nothing
// else that needs root's rights may run.
func As(user string, do func() error) error { return as(user, do) }

// OrAs calls do, and for root that lacks the rights to a file, as a unit may leave it, once more with [As]. Where
// both lack them the error is the first one.
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

// Require returns an error that names what the server needs and the process lacks of
// CAP_NET_ADMIN and CAP_NET_RAW, and says how to give it. It is to be called before anything is opened.
func Require() error { return require() }
