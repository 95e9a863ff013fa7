// Package keys defines who may knock: key types that cannot leak into logs, the files that hold them, the server's
// registry of clients, the client's host profiles, and the enrolment tokens that carry a profile to the client.
//
// Below it are four packages that import nothing else of this module: service (what files name), strict (how they are
// decoded), place (how they are read and written) and quote (how text is printed).
package keys
