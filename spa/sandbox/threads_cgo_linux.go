//go:build cgo

package sandbox

// listsThreads is whether what changes all threads lists /proc/self/task after each: psx does in a
// program that has C in it, and ends the program where it may not.
const listsThreads = true
