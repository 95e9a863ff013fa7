// Bytes, and the texts that stand for them.

export const ascii = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));

// text goes byte by byte: a call takes no hundred thousand arguments.
export const text = (bytes) => bytes.reduce((s, b) => s + String.fromCharCode(b), '');

export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

export const equal = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);

// uint returns a big-endian number of n bytes.
export function uint(value, n) {
  const b = new Uint8Array(n);
  let rest = BigInt.asUintN(8 * n, BigInt(value));
  for (let i = n - 1; i >= 0; i--) {
    b[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  return b;
}

export const number = (bytes) => bytes.reduce((n, x) => (n << 8n) | BigInt(x), 0n);

// base64 has no padding: its alphabet is that of ICE.
export const base64 = (bytes) => btoa(text(bytes)).replace(/=+$/, '');

export const base64url = (bytes) => base64(bytes).replace(/\+/g, '-').replace(/\//g, '_');

// fromBase64url decodes the one text of some bytes; otherwise it returns null.
export function fromBase64url(s) {
  if (!/^[A-Za-z0-9_-]*$/.test(s) || s.length % 4 === 1) return null;
  const b = ascii(atob(s.replace(/-/g, '+').replace(/_/g, '/')));
  return base64url(b) === s ? b : null;
}
