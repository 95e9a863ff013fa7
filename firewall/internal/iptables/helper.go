package iptables

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"sallyport/firewall/internal/keeper"
	"sallyport/spa/sandbox"
)

const (
	// HelperName is what the helper is called in the list of processes, and how it knows
	// what it is.
	HelperName = "spa-server-iptables"
	// HelperArg is no option of any program: one that does not call Helper ends with it.
	HelperArg = "--run-iptables"
	// helperSocket is the descriptor that it is given.
	helperSocket = 3
	// lockPath is the lock that the older kind of iptables holds while it works.
	lockPath = "/run/xtables.lock"
	// programPath is where programs are looked for, whatever the daemon's environment says.
	programPath = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin"
)

// operation is what the helper may be asked to do.
type operation uint8

const (
	OpLook   operation = 1 + iota // what is there of the guard
	OpLoad                        // put it there
	opCount                       // has anybody come in by a grant?
	OpRemove                      // take it away
)

// Request is what the daemon asks.
type Request struct {
	Op    operation
	Rules GuardRules
	// Wait is whether to wait a second for who holds the lock of iptables.
	Wait bool
}

// outcome is how it went.
type outcome uint8

const (
	done    outcome = iota
	Failed          // see Text
	busy            // another program holds the lock of iptables
	foreign         // chains of our name are not ours
)

// reply is what the helper answers.
type reply struct {
	Outcome outcome
	Text    string
	Found   findings // by opLook and opLoad
	Entered bool     // by opCount
}

// findings is what there is of the guard, in both families.
type findings struct {
	Present bool
	Digest  string
}

func Serve() {
	if len(os.Args) != 5 || os.Args[0] != HelperName || os.Args[1] != HelperArg {
		return
	}
	keeper.CallProcess("spa-iptables")
	if err := serve(); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, HelperName+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers until the daemon is gone.
func serve() error {
	if lent() {
		return errors.New("the program has its privilege from its file, so anybody could start it like this and have it " +
			"run programs of his own; start spa-server as root, or with ambient capabilities")
	}
	// Whoever stops the daemon may signal the whole group of processes; the helper ends
	// with the daemon, not before. A signal that is ignored would be so in programs too.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	path, kind, lock := os.Args[2], os.Args[3], os.Args[4]
	os.Clearenv()
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	socket := os.NewFile(helperSocket, "daemon")
	conn, err := net.FileConn(socket)
	if err != nil {
		return fmt.Errorf("it is started by spa-server alone: %w", err)
	}
	if err := socket.Close(); err != nil {
		return err
	}
	return answerAll(conn, kind, lock)
}

// lent reports whether who started this process has less privilege than it: by file
// capabilities, or a set-user-id bit.
func lent() bool {
	const secure = 23 // AT_SECURE of linux/auxvec.h
	vector, err := unix.Auxv()
	if err != nil {
		return true
	}
	return !slices.Contains(vector, [2]uintptr{secure, 0})
}

func answerAll(conn net.Conn, kind, lock string) error {
	in, out := gob.NewDecoder(conn), gob.NewEncoder(conn)
	// Programs are looked at, and modules of the kernel loaded, while there is the privilege.
	p, err := findPrograms(kind, lock)
	if err == nil {
		p.Left, err = sandbox.DropForPrograms(helperFiles(os.Getenv("PATH"), lock))
	}
	if err == nil {
		_, err = p.kindOf(p.command(false, "")) // whether it still runs
	}
	if err != nil {
		p = &Programs{Trouble: err.Error()}
	}
	if err := out.Encode(p); err != nil || p.Trouble != "" {
		return err
	}
	for {
		var r Request
		if err := in.Decode(&r); err != nil {
			return err
		}
		if err := out.Encode(p.Do(&r)); err != nil {
			return err
		}
	}
}

// helperFiles is what the helper and the programs may open: the programs and what they load, what
// they read of the system's names and of the kernel, and the lock of their older kind.
func helperFiles(path, lock string) sandbox.Files {
	return sandbox.Files{
		Run: append(filepath.SplitList(path), "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
		Read: []string{"/proc", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/hosts",
			"/etc/ethertypes", "/etc/xtables", "/etc/iproute2"},
		Write: []string{lock, os.DevNull},
	}
}

// Do does what was asked.
func (p *Programs) Do(r *Request) *reply {
	if err := r.Rules.Check(); err != nil && r.Op == OpLoad {
		return &reply{Outcome: Failed, Text: err.Error()}
	}
	answer := &reply{}
	var err error
	switch r.Op {
	case OpLook:
		answer.Found, err = p.look()
	case OpLoad:
		answer.Found, err = p.load(&r.Rules, r.Wait)
	case opCount:
		answer.Entered, err = p.entered()
	case OpRemove:
		err = p.remove(r.Wait)
	default:
		err = fmt.Errorf("unknown operation %d", r.Op)
	}
	var trouble *programError
	switch {
	case err == nil:
		return answer
	case errors.Is(err, errForeignChain):
		return &reply{Outcome: foreign, Text: err.Error()}
	case errors.As(err, &trouble) && trouble.busy():
		return &reply{Outcome: busy, Text: err.Error()}
	}
	return &reply{Outcome: Failed, Text: err.Error()}
}

// line makes one line of what a program said.
func line(said string) string {
	const longest = 400
	said = strings.Join(strings.Fields(said), " ")
	if len(said) > longest {
		said = said[:longest]
	}
	return said
}
