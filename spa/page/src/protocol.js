// The packet and the request: PROTOCOL.md, sections 2 to 5 and 12.

import { xchacha20 } from '@noble/ciphers/chacha.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { ascii, base64, concat, number, uint } from './bytes.js';
import { siphash } from './siphash.js';

export const shortest = 168;
export const longest = 188; // of a packet in a browser's check

const derive = (key, label, n) => hkdf(sha256, key, undefined, ascii(`sallyport 1 ${label}`), n);

const kinds = { open: 1, close: 2 };
const protocols = { tcp: 6, udp: 17 };

function encodeService(s) {
  const m = /^(tcp|udp)\/(\d+)$/.exec(s);
  return m ? concat([0x80 | protocols[m[1]]], uint(m[2], 2)) : concat([s.length], ascii(s));
}

// encodeRequest encodes { type, id, time and first in nanoseconds, for in milliseconds, source and letIn.address of 16
// bytes, services }.
export function encodeRequest(r) {
  const flags = (r.first === undefined ? 0 : 1) | (r.letIn === undefined ? 0 : 2);
  const b = concat(
    [1, kinds[r.type], flags, r.services.length], r.id, uint(r.time, 8), uint(r.for ?? 0, 4),
    r.source ?? new Uint8Array(16), ...r.services.map(encodeService),
    r.letIn ? concat(r.letIn.address, [r.letIn.bits]) : [],
    r.first === undefined ? [] : uint(r.first, 8),
  );
  if (b.length > 96) throw new Error('too many services for one packet');
  return b;
}

// seal makes a packet of a request's encoding. fresh are 32 random bytes, and padding as many as the length needs.
export function seal(request, p, fresh, padding) {
  const hedge = derive(p.clientKey, 'nonce hedge', 32);
  const nonce = hmac(sha256, hedge, concat(fresh, request)).subarray(0, 24);
  const sealedID = uint(number(p.clientID) ^ siphash(derive(p.gateKey, 'gate mask', 16), nonce), 8);
  const head = concat(nonce, sealedID);
  const tag = uint(siphash(derive(p.gateKey, 'gate tag', 16), head), 8);
  const body = xchacha20(derive(p.clientKey, 'request cipher', 32), nonce, concat(request, padding));
  const before = concat(head, tag, body);
  const mac = hmac(sha256, derive(p.clientKey, 'request mac', 32),
    concat(ascii('sallyport 1 request'), p.serverID, before));
  return concat(before, mac);
}

export const random = (n) => crypto.getRandomValues(new Uint8Array(n));

// randomLength is uniform from the shortest to the longest packet.
function randomLength() {
  const span = longest - shortest + 1;
  for (;;) {
    const x = random(1)[0];
    if (x < 256 - (256 % span)) return shortest + (x % span);
  }
}

// sealForBrowser makes a packet, and the user name and password that carry it in a connectivity check.
export function sealForBrowser(request, p) {
  const packet = seal(request, p, random(32), random(randomLength() - 72 - request.length));
  return { packet, ufrag: base64(packet), pwd: icePassword(p.clientKey, packet.subarray(0, 24)) };
}

export function icePassword(clientKey, nonce) {
  return base64(hkdf(sha256, clientKey, undefined, concat(ascii('sallyport 1 ice-pwd'), nonce), 24));
}
