//go:build !linux

package firewall

func serveAsHelper() {}
