// Package ssh holds how ssh is used through a gateway, and proves that it works with the
// programs that people use: OpenSSH, scp, rsync and git.
package ssh
