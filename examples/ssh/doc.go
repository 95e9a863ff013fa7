// Package ssh contains the page on ssh through a gateway, and tests that it works with the usual programs: OpenSSH,
// scp, rsync and git.
package ssh
