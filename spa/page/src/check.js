// Checks of this page's cryptography by the vectors of the protocol, for Node and for browsers. Each returns what is
// wrong, or nothing.

import { xchacha20 } from '@noble/ciphers/chacha.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { parseAddress } from './address.js';
import { ascii, base64, equal, uint } from './bytes.js';
import { encodeRequest, icePassword, seal } from './protocol.js';
import { siphash } from './siphash.js';
import { parseToken } from './token.js';

const hex = (s) => Uint8Array.from(s.match(/../g) ?? [], (x) => parseInt(x, 16));
const toHex = (b) => Array.from(b, (x) => x.toString(16).padStart(2, '0')).join('');

// parseVector returns the values of each name, in order.
export function parseVector(file) {
  const v = {};
  for (const line of file.split('\n')) {
    const m = /^([^#:][^:]*):(?: (.*))?$/.exec(line);
    if (m) (v[m[1]] ??= []).push(m[2] ?? '');
  }
  return v;
}

export function checkSipHash() {
  const got = siphash(Uint8Array.from({ length: 16 }, (_, i) => i), Uint8Array.from({ length: 15 }, (_, i) => i));
  return got === 0xa129ca6149be45e5n ? '' : `got ${got.toString(16)}`;
}

// checkPacket seals the packet of a vector again and, where the vector says what it asks for, encodes that.
export function checkPacket(v) {
  const packet = hex(v.packet[0]);
  const plain = hex(v.plaintext[0]);
  const p = {
    serverID: hex(v['server id'][0]), gateKey: hex(v['gate key'].at(-1)), clientID: hex(v['client id'][0]),
    clientKey: hex(v['client key'][0]),
  };
  const cipher = hkdf(sha256, p.clientKey, undefined, ascii('sallyport 1 request cipher'), 32);
  const body = xchacha20(cipher, packet.subarray(0, 24), packet.subarray(40, -32));
  const got = seal(plain, p, hex(v.fresh[0]), body.subarray(plain.length));
  if (!equal(got, packet)) return `sealed as ${toHex(got)}`;
  if (!v.type) return '';
  const encoded = encodeRequest(request(v));
  return equal(encoded, plain) ? '' : `encoded as ${toHex(encoded)}`;
}

function request(v) {
  const r = {
    type: v.type[0], id: hex(v['request id'][0]), time: BigInt(v.time[0]), for: Number(v.for[0]), services: v.service,
  };
  if (v.source[0]) r.source = parseAddress(v.source[0]);
  if (v.first) r.first = BigInt(v.first[0]);
  if (v['let in']) {
    const [address, bits] = v['let in'][0].split('/');
    const four = !address.includes(':');
    r.letIn = { address: parseAddress(address), bits: Number(bits ?? (four ? 32 : 128)) };
  }
  return r;
}

export function checkToken(v) {
  const token = v.token ? v.token[0] : new TextDecoder('latin1').decode(hex(v['token bytes'][0]));
  const p = parseToken(token);
  if (v.verdict[0] === 'token-wrong') return p === null ? '' : 'accepted';
  if (p === null) return 'refused';
  const want = {
    name: p.name, client: p.client, address: p.address, source: p.source, 'server id': toHex(p.serverID),
    'gate key': toHex(p.gateKey), 'client id': toHex(p.clientID), 'client key': toHex(p.clientKey),
  };
  return Object.entries(want).filter(([name, value]) => v[name][0] !== value).map(([name]) => name).join(', ');
}

// checkBrowserVector checks the user name and the password of a browser's check.
export function checkBrowserVector(v) {
  const packet = hex(v.packet[0]);
  if (icePassword(hex(v['client key'][0]), packet.subarray(0, 24)) !== v['ice-pwd'][0]) return 'the ice-pwd differs';
  const found = v.message[0].includes(toHex(ascii(`${base64(packet)}:`)));
  return found ? '' : `the user name is not ${base64(packet)}`;
}
