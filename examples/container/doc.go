// Package container contains the page on the gateway in a container, the recipe of its image, and a test that runs
// both with podman.
package container
