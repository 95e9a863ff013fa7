// Package keys is who may knock: key types that cannot leak into logs, the files that
// hold them, the server's registry of clients, the client's host profiles, and the
// enrolment tokens that carry a profile from one to the other.
//
// Services are plain strings here: what they mean is decided by package spa.
//
// Files with secrets are written beside their place and renamed into it, never over
// something without being asked, and are refused when others could have read them.
package keys
