// The enrolment token: PROTOCOL.md, sections 3 and 13.1.

import { sha256 } from '@noble/hashes/sha2.js';
import { formatAddress, isFour, parseAddress, splitHost } from './address.js';
import { ascii, base64url, concat, equal, fromBase64url, number, text, uint } from './bytes.js';

const kinds = [
  { prefix: 'spar1', label: 'sallyport 1 recovery token', recovery: true },
  { prefix: 'spa2', label: 'sallyport 1 fleet token', fleet: true },
  { prefix: 'spa1', label: 'sallyport 1 token' },
];

export const validName = (s) => /^[a-z0-9][a-z0-9-]{0,31}$/.test(s);

// parseToken returns what a token says, or null if the text is no token. A fleet's has gateways, a Map of addresses by
// names. Its address is their domain, its server id is the fleet's, and their keys are derived from its keys.
export function parseToken(s) {
  const trimmed = s.trim();
  const kind = kinds.find((k) => trimmed.startsWith(k.prefix));
  const all = kind && fromBase64url(trimmed.slice(kind.prefix.length));
  if (!all || all.length < 8) return null;
  const body = all.subarray(0, -8);
  if (!equal(checksum(kind, body), all.subarray(-8))) return null;
  const p = readBody(body, kind.fleet);
  return p && valid(p) ? { ...p, recovery: kind.recovery, token: trimmed } : null;
}

const checksum = (kind, body) => sha256(concat(ascii(kind.label), body)).subarray(0, 8);

// tokenOf returns the token of a client of one gateway.
export function tokenOf(p) {
  const kind = kinds.at(-1);
  const string = (s) => [s.length, ...ascii(s)];
  const body = concat(
    ...[p.name, p.client, p.address, p.source].map(string),
    [p.knockPorts.length], ...p.knockPorts.map((n) => uint(n, 2)),
    p.serverID, p.gateKey, p.clientID, p.clientKey, [Number(p.receipts), p.services.length],
    ...p.services.flatMap((s) => [string(s.name), [s.ports.length], ...s.ports.map(string)]),
  );
  return kind.prefix + base64url(concat(body, checksum(kind, body)));
}

function readBody(body, fleet) {
  let at = 0;
  const next = (n) => {
    at += n;
    return body.subarray(at - n, at);
  };
  const count = () => next(1)[0] ?? 0;
  const string = () => text(next(count()));
  const p = { name: string(), client: string(), address: string(), source: string() };
  p.knockPorts = Array.from({ length: count() }, () => Number(number(next(2))));
  p.serverID = next(16);
  p.gateKey = next(32);
  p.clientID = next(8);
  p.clientKey = next(32);
  const receipts = count();
  p.receipts = receipts === 1;
  p.services = Array.from({ length: count() }, () => (
    { name: string(), ports: Array.from({ length: count() }, string) }));
  const listed = Array.from({ length: fleet ? Number(number(next(2))) : 0 }, () => [string(), string()]);
  if (at !== body.length || receipts > 1 || !sorted(listed.map(([name]) => name))) return null;
  return fleet ? { ...p, gateways: new Map(listed) } : p;
}

// sorted reports whether each name is there once, in its place.
const sorted = (names) => names.every((n, i) => i === 0 || names[i - 1] < n);

function valid(p) {
  return validName(p.name) && validName(p.client) && validSource(p.source)
    && (p.gateways ? validFleet(p) : splitHost(p.address) !== null)
    && within(p.knockPorts, 1, 32) && p.knockPorts.every((n) => n > 0)
    && p.serverID.some(Boolean) && p.clientID.some(Boolean) === !p.gateways
    && p.services.length <= 128 && sorted(p.services.map((s) => s.name))
    && p.services.every((s) => validName(s.name) && within(s.ports, 1, 64) && s.ports.every(validPorts));
}

function validFleet(p) {
  const validDomain = [p.address, `a.${p.address}`].every((s) => isName(splitHost(s)));
  return p.gateways.size <= 1000 && (p.address === '' || validDomain)
    && [...p.gateways].every(([name, a]) => validName(name) && (a === '' ? p.address !== '' : splitHost(a) !== null));
}

const isName = (a) => a !== null && a.bytes === null && a.port === 0;

// within reports whether a list has a possible length and nothing twice.
const within = (list, low, high) => list.length >= low && list.length <= high && new Set(list).size === list.length;

function validSource(s) {
  if (s === '' || s === 'observed') return true;
  if (s.startsWith('stun:')) return splitHost(s.slice(5)) !== null;
  const b = parseAddress(s);
  return b !== null && !(s.includes(':') && isFour(b)) && formatAddress(b) === s;
}

function validPorts(s) {
  const m = /^(tcp|udp)\/([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?$/.exec(s);
  if (!m) return false;
  const low = Number(m[2]);
  const high = m[3] === undefined ? low + 1 : Number(m[3]);
  return low <= 65535 && (m[3] === undefined || high <= 65535) && low < high;
}
