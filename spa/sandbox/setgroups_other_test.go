//go:build linux && !386 && !arm

package sandbox

import "golang.org/x/sys/unix"

// setGroupsCall is the call that the drop makes.
const setGroupsCall = unix.SYS_SETGROUPS
