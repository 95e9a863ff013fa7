package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what a process and its descendants have used.
type usage struct {
	cpu     time.Duration
	memory  uint64 // bytes resident, of those that processes share a part each
	wakeUps uint64 // context switches: each is the end of a wait, or of a time slice
}

func (u usage) since(before usage) usage {
	return usage{u.cpu - before.cpu, u.memory, u.wakeUps - before.wakeUps}
}

// usageOf adds up the process, those that it started and, with their CPU time alone, those that it started and waited
// for.
func usageOf(pid int) (usage, error) {
	parents, err := parents()
	if err != nil {
		return usage{}, err
	}
	var all usage
	for child := range parents {
		if !descends(parents, child, pid) {
			continue
		}
		one, err := processUsage(child)
		if err != nil && child == pid {
			return usage{}, err
		}
		all.cpu, all.memory, all.wakeUps = all.cpu+one.cpu, all.memory+one.memory, all.wakeUps+one.wakeUps
	}
	return all, nil
}

// parents returns the parent of each process of the machine.
func parents() (map[int]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parents := make(map[int]int, len(dirs))
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		if fields, err := stat(pid); err == nil { // otherwise it has ended
			parents[pid] = int(fields[statParent])
		}
	}
	return parents, nil
}

func descends(parents map[int]int, pid, from int) bool {
	for pid != 0 && pid != from {
		pid = parents[pid]
	}
	return pid == from
}

// Fields of /proc/PID/stat after the name: see proc_pid_stat(5).
const (
	statParent         = 4 - 3
	statChildrenUser   = 16 - 3
	statChildrenSystem = 17 - 3
)

func stat(pid int) ([]int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	words := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	fields := make([]int64, len(words))
	for i, word := range words[1:] { // the first is the state, a letter
		fields[i+1], _ = strconv.ParseInt(word, 10, 64) // larger ones are none of the above
	}
	if len(fields) <= statChildrenSystem {
		return nil, fmt.Errorf("/proc/%d/stat: %w", pid, unix.EINVAL)
	}
	return fields, nil
}

// tick is the unit of times in /proc/PID/stat, on every architecture that Go runs on.
const tick = 10 * ms

func processUsage(pid int) (usage, error) {
	fields, err := stat(pid)
	if err != nil {
		return usage{}, err
	}
	u := usage{cpu: tick * time.Duration(fields[statChildrenUser]+fields[statChildrenSystem])}
	u.memory, err = number(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "\nPss:")
	if err != nil {
		return usage{}, err
	}
	u.memory *= 1024
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return usage{}, err
	}
	for _, task := range tasks {
		if err := u.add(task); err != nil {
			return usage{}, err
		}
	}
	return u, nil
}

// add adds a thread's CPU time, which schedstat has in nanoseconds, and its context switches.
func (u *usage) add(task string) error {
	cpu, err := number(filepath.Join(task, "schedstat"), "")
	if err != nil {
		return err
	}
	u.cpu += time.Duration(cpu)
	for _, name := range []string{"\nvoluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"} {
		n, err := number(filepath.Join(task, "status"), name)
		if err != nil {
			return err
		}
		u.wakeUps += n
	}
	return nil
}

// number reads the number after a name in a file.
func number(path, name string) (uint64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(string(text), name)
	words := strings.Fields(rest)
	if !found || len(words) == 0 {
		return 0, fmt.Errorf("%s has no %q: %w", path, name, fs.ErrNotExist)
	}
	return strconv.ParseUint(words[0], 10, 64)
}
