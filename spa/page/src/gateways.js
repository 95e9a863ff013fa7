// What can be knocked on.

import { parseAddress, sendable, splitHost } from './address.js';
import { parseToken } from './token.js';

// gatewayOf returns a gateway of { token, hosts }, or an error's text.
export function gatewayOf(kept) {
  const profile = parseToken(kept.token);
  if (!profile) return 'This is not a valid token: was it copied whole?';
  if (profile.recovery) return 'This token is for emergencies, with few uses: keep it for spa-client.';
  if (profile.source.startsWith('stun:')) return 'This token states an address by STUN, which a page cannot do.';
  const { host, bytes, port } = splitHost(profile.address);
  const hosts = bytes ? host : (kept.hosts ?? '').trim();
  const addresses = hosts.split(/[\s,]+/).filter(Boolean).map(parseAddress);
  if (!bytes && addresses.length === 0) return '';
  if (!addresses.every((a) => a && sendable(a)) || addresses.length > 2) {
    return 'Enter one or two addresses, such as 192.0.2.1 or 2001:db8::1.';
  }
  return { profile, hosts, addresses, ports: port ? [port] : profile.knockPorts, kept: { token: profile.token, hosts } };
}

export const sameGateway = (a, b) => a.profile.name === b.profile.name && a.profile.client === b.profile.client;
