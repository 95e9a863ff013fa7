package tty

import "golang.org/x/sys/unix"

const getTermios, setTermios, dropTermios = unix.TCGETS, unix.TCSETS, unix.TCSETSF
