// Package probe contains the page on watching a gateway from outside, and tests of its units.
package probe
