//go:build linux && (386 || arm)

package sandbox

import "golang.org/x/sys/unix"

// setGroupsCall is the call that the drop makes: the other one has groups of 16 bits.
const setGroupsCall = unix.SYS_SETGROUPS32
