// A gateway of a fleet: PROTOCOL.md, section 13.

import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { splitHost } from './address.js';
import { ascii, concat } from './bytes.js';
import { tokenOf, validName } from './token.js';

// gatewayAt returns what the token of one gateway of a fleet would say, or null if the fleet has no such gateway.
export function gatewayAt(fleet, site) {
  const { gateways, ...rest } = fleet;
  const address = gateways.get(site) || (fleet.address && `${site}.${fleet.address}`);
  if (!validName(site) || !address || !splitHost(address)) return null;
  const serverID = sha256(concat(ascii('sallyport 1 server'), fleet.serverID, ascii(site))).subarray(0, 16);
  const derive = (key, label, n) => hkdf(sha256, key, undefined, concat(ascii(`sallyport 1 ${label}`), serverID), n);
  const clientID = derive(fleet.clientKey, 'client id', 8);
  if (!clientID.some(Boolean)) clientID[7] = 1;
  const p = {
    ...rest, address, serverID, clientID,
    gateKey: derive(fleet.gateKey, 'gateway gate', 32), clientKey: derive(fleet.clientKey, 'gateway', 32),
  };
  return { ...p, token: tokenOf(p) };
}
