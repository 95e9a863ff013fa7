// Package compare contains the page that helps to choose between WireGuard, a mesh VPN and Sallyport, and tests that
// the configurations on it work.
package compare
