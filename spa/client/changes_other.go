//go:build !linux

package client

// Changes polls every few seconds.
func (system) Changes() (<-chan struct{}, func()) { return polled() }
