// Package actions tries the programs of this directory with a real server.
package actions
