// Package office is the office of a fleet: a directory, which may lie in git, in which administrators say who may use
// which gateway.
//
//	office.toml         the fleet: name, domain, id, the key that gateways trust, knock ports, services
//	admins/NAME.toml    an administrator's recipient, in the format of age (C2SP.org/age)
//	gateways/NAME.toml  a gateway: its address and its recipient
//	clients/NAME.toml   a client's terms: see keys.Terms
//	clients/NAME.age    the client's key, sealed to the vault
//	vault.age           the office's secrets, sealed to all administrators
//	published.toml      the last publish: its serial and what it said
//
// All but *.age is readable, so that a change can be read in a diff. The recipient of the vault is in the vault only:
// without it, a program that can write to the directory cannot make a client's key. It can change terms and gateways:
// the next publish reports that.
//
// A command holds the directory's lock, reads everything, and writes whole files, in an order that leaves an office
// which still opens if the command is killed. Files that contradict each other, as half a merge leaves them, are an
// error that names the file.
package office
