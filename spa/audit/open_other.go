//go:build !unix

package audit

import "io/fs"

const noFollow = 0

func links(fs.FileInfo) uint64 { return 1 }

func ofRoot(fs.FileInfo) bool { return false }
