//go:build !linux

package acts

import (
	"context"
	"io/fs"

	"sallyport/spa/server/control"
)

func tell(context.Context, string, control.Request) error { return control.ErrNotRunning }

func withRightsFor(_ string, do func() error) error { return do() }

func onlyRoot(fs.FileInfo) bool { return true }
