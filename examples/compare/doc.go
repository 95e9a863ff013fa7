// Package compare holds the page that helps to choose between WireGuard, a mesh VPN and Sallyport, and proves that
// the configurations on it work.
package compare
