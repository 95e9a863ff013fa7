//go:build !unix

package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"sallyport/cmd/internal/cli"
)

// passOn returns an error: this system cannot pass a connection to another program.
func passOn(*os.File, net.Conn) error {
	return cli.Fail(fmt.Errorf("handing the connection over: %w", errors.ErrUnsupported),
		"remove --fdpass here, and ProxyUseFdpass from ssh's configuration")
}
