package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"
)

// task is a thread's privileges as in /proc. See proc_pid_status(5).
type task struct {
	uids, gids, groups                                 []int // uids, gids: real, effective, saved, file system
	inheritable, allowed, effective, bounding, ambient capabilities
	noNewPrivs                                         string
}

// verify reads back the process's remaining privileges and compares them.
func verify(want remains) error {
	if err := verifyThreads("/proc/self/task", want); err != nil {
		return err
	}
	return verifyProcess(want.securebits)
}

func verifyThreads(dir string, want remains) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*", "status"))
	if err != nil {
		return fmt.Errorf("looking for threads: %w", err)
	}
	seen := false
	for _, path := range paths {
		got, err := readTask(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended by now
		}
		if err != nil {
			return err
		}
		if err := got.differs(want); err != nil {
			return fmt.Errorf("%w (%s)", err, path)
		}
		seen = true
	}
	if !seen {
		return errors.New("no thread to be found in " + dir)
	}
	return nil
}

// verifyProcess reads back what /proc does not show. It reads the securebits on all threads at once: the runtime kills
// the program if they differ.
func verifyProcess(want cap.Secbits) error {
	bits, err := cap.Prctlw(unix.PR_GET_SECUREBITS)
	if err != nil {
		return fmt.Errorf("reading the securebits back: %w", err)
	}
	dumpable, err := cap.Prctl(unix.PR_GET_DUMPABLE)
	if err != nil {
		return fmt.Errorf("reading dumpable back: %w", err)
	}
	return sealed(cap.Secbits(bits), want, dumpable)
}

func sealed(bits, want cap.Secbits, dumpable int) error {
	if bits != want {
		return fmt.Errorf("securebits are %#x, want %#x", uint(bits), uint(want))
	}
	if dumpable != 0 {
		return fmt.Errorf("dumpable is %d, want 0", dumpable)
	}
	return nil
}

// differs returns an error that names the first difference.
func (t task) differs(want remains) error {
	four := func(id int) []int { return []int{id, id, id, id} }
	for _, check := range []struct {
		what      string
		good      bool
		got, want any
	}{
		{"Uid", slices.Equal(t.uids, four(want.uid)), t.uids, want.uid},
		{"Gid", slices.Equal(t.gids, four(want.gid)), t.gids, want.gid},
		{"Groups", slices.Equal(t.groups, want.groups), t.groups, want.groups},
		{"CapInh", t.inheritable == want.inheritable, t.inheritable, want.inheritable},
		{"CapPrm", t.allowed == want.kept, t.allowed, want.kept},
		{"CapEff", t.effective == want.kept, t.effective, want.kept},
		{"CapBnd", t.bounding == want.bounding, t.bounding, want.bounding},
		{"CapAmb", t.ambient == want.ambient, t.ambient, want.ambient},
		{"NoNewPrivs", t.noNewPrivs == "1", t.noNewPrivs, 1},
	} {
		if !check.good {
			return fmt.Errorf("%s is %v after the drop, want %v", check.what, check.got, check.want)
		}
	}
	return nil
}

func readTask(path string) (task, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return task{}, fmt.Errorf("reading privileges: %w", err)
	}
	t, err := parseTask(string(text))
	if err != nil {
		return task{}, fmt.Errorf("reading privileges in %s: %w", path, err)
	}
	return t, nil
}

// parseTask parses a status file. A missing line is an error: what is not reported may not be gone.
func parseTask(text string) (task, error) {
	lines := statusLines(text)
	for _, name := range []string{"Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"} {
		if _, ok := lines[name]; !ok {
			return task{}, fmt.Errorf("no line %s", name)
		}
	}
	t := task{noNewPrivs: lines["NoNewPrivs"]}
	var errs []error
	for name, ids := range map[string]*[]int{"Uid": &t.uids, "Gid": &t.gids, "Groups": &t.groups} {
		for field := range strings.FieldsSeq(lines[name]) {
			id, err := strconv.Atoi(field)
			errs = append(errs, err)
			*ids = append(*ids, id)
		}
	}
	for name, set := range map[string]*capabilities{"CapInh": &t.inheritable, "CapPrm": &t.allowed,
		"CapEff": &t.effective, "CapBnd": &t.bounding, "CapAmb": &t.ambient} {
		bits, err := strconv.ParseUint(lines[name], 16, 64)
		*set = capabilities(bits)
		errs = append(errs, err)
	}
	return t, errors.Join(errs...)
}

// statusLines returns the values of a status file by name.
func statusLines(text string) map[string]string {
	lines := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		lines[name] = strings.TrimSpace(value)
	}
	return lines
}

// taskFiles are the open status files of all threads of this process, and how many system call filters each thread had.
type taskFiles []taskFile

type taskFile struct {
	status  *os.File
	filters int
}

func openTasks() (taskFiles, error) {
	paths, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil {
		return nil, fmt.Errorf("looking for threads: %w", err)
	}
	var all taskFiles
	for _, path := range paths {
		status, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has ended
		}
		if err != nil {
			all.close()
			return nil, fmt.Errorf("looking at threads: %w", err)
		}
		t := taskFile{status: status}
		_, t.filters, err = t.filter()
		all = append(all, t)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			all.close()
			return nil, err
		}
	}
	return all, nil
}

func (all taskFiles) close() {
	for _, t := range all {
		t.status.Close()
	}
}

// filter reads whether the thread's system calls are filtered (seccomp mode 2), and by how many filters; 0 if the
// kernel does not report that (before Linux 5.9).
func (t taskFile) filter() (mode string, filters int, err error) {
	text := make([]byte, 1<<16)
	n, err := t.status.ReadAt(text, 0)
	if err != nil && err != io.EOF {
		return "", 0, fmt.Errorf("reading how system calls are filtered: %w", err)
	}
	lines := statusLines(string(text[:n]))
	if count, ok := lines["Seccomp_filters"]; ok {
		filters, err = strconv.Atoi(count)
		if err != nil {
			return "", 0, fmt.Errorf("reading how system calls are filtered: %w", err)
		}
	}
	return lines["Seccomp"], filters, nil
}

// verifyFilter checks that each thread has one filter more than before. A thread started since then inherited those of
// its parent.
func (all taskFiles) verifyFilter() error {
	seen := false
	for _, t := range all {
		mode, filters, err := t.filter()
		if errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return err
		}
		if mode != "2" || filters != 0 && filters != t.filters+1 {
			return fmt.Errorf("after the drop the mode of seccomp is %s with %d filters where there were %d, want mode 2 "+
				"and one filter more (%s)",
				mode, filters, t.filters, t.status.Name())
		}
		seen = true
	}
	if !seen {
		return errors.New("no thread to be found")
	}
	return nil
}
