//go:build !cgo

package sandbox

const listsThreads = false // Go's runtime knows its threads
