// Checks of this page's cryptography by the vectors of the protocol, for Node and for browsers. Each returns what is
// wrong, or nothing.

import { xchacha20 } from '@noble/ciphers/chacha.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { parseAddress } from './address.js';
import { ascii, base64, equal, uint } from './bytes.js';
import { gatewayAt } from './fleet.js';
import { encodeRequest, icePassword, seal } from './protocol.js';
import { siphash } from './siphash.js';
import { parseToken, tokenOf } from './token.js';

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
function checkPacket(v) {
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

// checkToken checks what a token says, or that it is refused.
function checkToken(v) {
  const token = v.token ? v.token[0] : new TextDecoder('latin1').decode(hex(v['token bytes'][0]));
  const p = parseToken(token);
  if (v.verdict[0].endsWith('-wrong')) return p === null ? '' : 'accepted';
  if (p === null) return 'refused';
  if (token.startsWith('spa1') && tokenOf(p) !== p.token) return `encoded as ${tokenOf(p)}`;
  const listed = [...p.gateways ?? []].map(([name, address]) => `${name} ${address}`.trim());
  const fleet = {
    domain: p.address, 'fleet id': toHex(p.serverID), 'fleet gate key': toHex(p.gateKey),
    'fleet client key': toHex(p.clientKey), gateway: listed.join(),
  };
  const want = { name: p.name, client: p.client, source: p.source, ...(p.gateways ? fleet : said(p)) };
  return differing(want, { ...v, gateway: [(v.gateway ?? []).join()] });
}

const said = (p) => ({
  address: p.address, 'server id': toHex(p.serverID), 'gate key': toHex(p.gateKey), 'client id': toHex(p.clientID),
  'client key': toHex(p.clientKey),
});

const differing = (want, v) => Object.keys(want).filter((name) => v[name][0] !== want[name]).join(', ');

// checkGateway checks the token that is derived for a gateway of a fleet.
function checkGateway(v) {
  const fleet = {
    name: 'prod', client: 'alice', address: v.domain[0], source: '', knockPorts: [62201], receipts: true, services: [],
    serverID: hex(v['fleet id'][0]), gateKey: hex(v['fleet gate key'][0]), clientKey: hex(v['fleet client key'][0]),
    gateways: new Map(),
  };
  return differing(said(parseToken(gatewayAt(fleet, v.site[0]).token)), v);
}

// checkBrowserVector checks the user name and the password of a browser's check.
function checkBrowserVector(v) {
  const packet = hex(v.packet[0]);
  if (icePassword(hex(v['client key'][0]), packet.subarray(0, 24)) !== v['ice-pwd'][0]) return 'the ice-pwd differs';
  const found = v.message[0].includes(toHex(ascii(`${base64(packet)}:`)));
  return found ? '' : `the user name is not ${base64(packet)}`;
}

const sealed = ['ok', 'malformed', 'stale', 'revoked', 'retired'];

// checkOf returns the check for a vector, or null if that is not about what a page does.
export function checkOf(v) {
  const verdict = v.verdict[0];
  if (v.message) return checkBrowserVector;
  if (/^(fleet-)?token-/.test(verdict)) return checkToken;
  if (verdict === 'fleet-gateway') return checkGateway;
  return sealed.includes(verdict) ? checkPacket : null;
}
