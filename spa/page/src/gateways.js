// What can be knocked on.

import { parseAddress, sendable, splitHost } from './address.js';
import { equal } from './bytes.js';
import { gatewayAt } from './fleet.js';
import { parseToken } from './token.js';

const wrong = (field, error) => ({ field, error });

// profileOf returns what a token says of a gateway, or null. With a fleet's token, choice is the name of the gateway.
// What is kept opens no other gateway: it is that one's token, and site is its name.
export function profileOf({ token, choice, site }) {
  const p = parseToken(token);
  const at = p?.gateways ? choice.trim() : site;
  const profile = p?.gateways ? gatewayAt(p, at) : p;
  return profile && at ? { ...profile, site: at, name: `${p.name}/${at}` } : profile;
}

const choiceError = (fleet) => (fleet.address ? 'Enter the name of a gateway, such as web7.'
  : 'Enter the name of a gateway that the token lists.');

// gatewayOf returns a gateway of { token, choice, hosts } or of what was kept, or { field, error }: what is wrong with
// which of them.
export function gatewayOf(kept) {
  const fleet = parseToken(kept.token);
  if (!fleet) return wrong('token', 'This is not a valid token: was it copied whole?');
  const profile = profileOf(kept);
  if (!profile) return wrong('choice', choiceError(fleet));
  if (profile.recovery) return wrong('token', 'This token is for emergencies, with few uses: keep it for spa-client.');
  if (profile.source.startsWith('stun:')) {
    return wrong('token', 'This token states an address by STUN, which a page cannot do.');
  }
  const { host, bytes, port } = splitHost(profile.address);
  const hosts = bytes ? host : (kept.hosts ?? '').trim();
  const addresses = hosts.split(/[\s,]+/).filter(Boolean).map(parseAddress);
  if (addresses.length === 0) return wrong('hosts', 'Enter the address of the gateway.');
  if (!addresses.every((a) => a && sendable(a)) || addresses.length > 2) {
    return wrong('hosts', 'Enter one or two addresses, such as 192.0.2.1 or 2001:db8::1.');
  }
  const ports = port ? [port] : profile.knockPorts;
  return { profile, hosts, addresses, ports, kept: { token: profile.token, hosts, site: profile.site } };
}

// sameGateway reports whether two keys are for the same client of the same gateway: names may be equal by chance.
export const sameGateway = (a, b) => a.profile.client === b.profile.client
  && equal(a.profile.serverID, b.profile.serverID);

// title is what a gateway is called among others.
export function title(gateway, all) {
  const { name, client } = gateway.profile;
  return all.some((g) => g !== gateway && g.profile.name === name) ? `${name} (${client} at ${gateway.hosts})` : name;
}
