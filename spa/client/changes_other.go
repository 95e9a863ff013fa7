//go:build !linux

package client

// Changes looks again every few seconds.
func (system) Changes() (<-chan struct{}, func()) { return polled() }
