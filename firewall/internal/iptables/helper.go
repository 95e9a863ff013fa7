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
	"strings"
	"syscall"

	"sallyport/spa/helper"
	"sallyport/spa/sandbox"
)

const (
	// HelperName is the helper's name in the process list, by which it also recognizes itself.
	HelperName = "spa-server-iptables"
	// HelperArg is not an option of any program: a program that does not call firewall.Helper fails on it.
	HelperArg = "--run-iptables"
	// LockPath is the lock that legacy iptables holds while it works.
	LockPath = "/run/xtables.lock"
	// programPath is where programs are searched, whatever the daemon's environment contains.
	programPath = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin"
)

// operation is a task for the helper.
type operation uint8

const (
	OpLook   operation = 1 + iota // report what there is of the guard
	OpLoad                        // load the guard
	opCount                       // has a new flow come in through a grant?
	OpRemove                      // remove the guard
)

// Request is a request from the daemon.
type Request struct {
	Op    operation
	Rules GuardRules
	// Wait is whether to wait a second for the lock of iptables.
	Wait bool
}

// outcome is how a request went.
type outcome uint8

const (
	done    outcome = iota
	Failed          // see Text
	busy            // another program holds the lock of iptables
	foreign         // chains with our names are not ours
)

// reply is the helper's answer to a request.
type reply struct {
	Outcome outcome
	Text    string
	Found   findings // for OpLook and OpLoad
	Entered bool     // for opCount
}

// findings describes the guard as found, in both families.
type findings struct {
	Present bool
	Digest  string
}

// Serve runs the helper and never returns, if this process was started as one.
func Serve() {
	if len(os.Args) != 5 || os.Args[0] != HelperName || os.Args[1] != HelperArg {
		return
	}
	helper.CallProcess("spa-iptables")
	if err := serve(); err != nil && !errors.Is(err, io.EOF) {
		fmt.Fprintln(os.Stderr, HelperName+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers requests until the daemon has ended.
func serve() error {
	if err := helper.Lent(); err != nil {
		return err
	}
	// A signal to stop the daemon may go to the whole process group, but the helper ends with the daemon, not before.
	// Catch the signals rather than ignore them: programs would inherit that.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	path, kind, lock := os.Args[2], os.Args[3], os.Args[4]
	os.Clearenv()
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	conn, err := helper.Daemon()
	if err != nil {
		return err
	}
	return answerAll(conn, kind, lock)
}

func answerAll(conn net.Conn, kind, lock string) error {
	in, out := gob.NewDecoder(conn), gob.NewEncoder(conn)
	// Find programs and load kernel modules before dropping privileges.
	p, err := findPrograms(kind, lock)
	if err == nil {
		p.Privileges, err = sandbox.DropForPrograms(helperFiles(os.Getenv("PATH"), lock))
	}
	if err == nil {
		_, err = p.kindOf(p.command(false, "")) // check that it still runs
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

// helperFiles returns the files that the helper and its programs may open: the programs and their libraries, system
// names and kernel settings that they read, and the lock of legacy iptables.
func helperFiles(path, lock string) sandbox.Files {
	return sandbox.Files{
		Run: append(filepath.SplitList(path), "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"),
		Read: []string{"/proc", "/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/hosts",
			"/etc/ethertypes", "/etc/xtables", "/etc/iproute2"},
		Write: []string{lock, os.DevNull},
	}
}

// Do executes a request.
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

// line puts a program's output on one line of limited length.
func line(said string) string {
	const longest = 400
	said = strings.Join(strings.Fields(said), " ")
	if len(said) > longest {
		said = said[:longest]
	}
	return said
}
