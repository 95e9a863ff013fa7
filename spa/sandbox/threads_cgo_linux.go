//go:build cgo

package sandbox

// listsThreads is whether changing all threads lists /proc/self/task each time: psx does that in a program that
// contains C, and kills the program if it cannot.
const listsThreads = true
