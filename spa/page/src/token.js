// The enrolment token: PROTOCOL.md, section 3.

import { sha256 } from '@noble/hashes/sha2.js';
import { formatAddress, isFour, parseAddress, splitHost } from './address.js';
import { ascii, concat, equal, fromBase64url, number, text } from './bytes.js';

const kinds = [
  { prefix: 'spar1', label: 'sallyport 1 recovery token', recovery: true },
  { prefix: 'spa1', label: 'sallyport 1 token', recovery: false },
];

const validName = (s) => /^[a-z0-9][a-z0-9-]{0,31}$/.test(s);

// parseToken returns what a token says, or null if the text is no token.
export function parseToken(s) {
  const trimmed = s.trim();
  const kind = kinds.find((k) => trimmed.startsWith(k.prefix));
  const all = kind && fromBase64url(trimmed.slice(kind.prefix.length));
  if (!all || all.length < 8) return null;
  const body = all.subarray(0, -8);
  const sum = sha256(concat(ascii(kind.label), body)).subarray(0, 8);
  if (!equal(sum, all.subarray(-8))) return null;
  const p = readBody(body);
  return p && valid(p) ? { ...p, recovery: kind.recovery, token: trimmed } : null;
}

function readBody(body) {
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
  return at === body.length && receipts < 2 ? p : null;
}

function valid(p) {
  const names = p.services.map((s) => s.name);
  const sorted = names.every((n, i) => i === 0 || names[i - 1] < n);
  return validName(p.name) && validName(p.client) && splitHost(p.address) !== null && validSource(p.source)
    && within(p.knockPorts, 1, 32) && p.knockPorts.every((n) => n > 0)
    && p.serverID.some(Boolean) && p.clientID.some(Boolean)
    && p.services.length <= 128 && sorted
    && p.services.every((s) => validName(s.name) && within(s.ports, 1, 64) && s.ports.every(validPorts));
}

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
