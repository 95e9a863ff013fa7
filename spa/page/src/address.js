// Addresses, as 16 bytes: IPv4 as ::ffff:a.b.c.d.

const mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

function parse4(s) {
  const m = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(s);
  if (!m) return null;
  const parts = m.slice(1);
  return parts.every((p) => String(Number(p)) === p && Number(p) < 256) ? parts.map(Number) : null;
}

// groups parses one side of an IPv6 address.
function groups(s) {
  if (s === '') return [];
  const out = [];
  const parts = s.split(':');
  for (const [i, part] of parts.entries()) {
    const four = i === parts.length - 1 && part.includes('.') ? parse4(part) : null;
    if (four) {
      out.push(...four);
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      const n = parseInt(part, 16);
      out.push(n >> 8, n & 0xff);
    } else {
      return null;
    }
  }
  return out;
}

// parseAddress returns the bytes of an address, or null.
export function parseAddress(s) {
  const four = parse4(s);
  if (four) return Uint8Array.from([...mapped, ...four]);
  const halves = s.split('::');
  if (!s.includes(':') || halves.length > 2) return null;
  const [head, tail] = halves.map(groups);
  if (!head || (halves.length === 2 && !tail)) return null;
  if (halves.length === 1) return head.length === 16 ? Uint8Array.from(head) : null;
  const gap = 16 - head.length - tail.length;
  return gap >= 2 ? Uint8Array.from([...head, ...new Array(gap).fill(0), ...tail]) : null;
}

export const isFour = (b) => mapped.every((x, i) => b[i] === x);

// formatAddress returns the one spelling of an address (RFC 5952).
export function formatAddress(b) {
  if (isFour(b)) return b.slice(12).join('.');
  const g = [];
  for (let i = 0; i < 16; i += 2) g.push((b[i] << 8) | b[i + 1]);
  let best = [0, 0];
  for (let i = 0; i < 8; i++) {
    let n = 0;
    while (i + n < 8 && g[i + n] === 0) n++;
    if (n > best[1]) best = [i, n];
  }
  const hex = (list) => list.map((x) => x.toString(16)).join(':');
  if (best[1] < 2) return hex(g);
  return `${hex(g.slice(0, best[0]))}::${hex(g.slice(best[0] + best[1]))}`;
}

// sendable reports whether a packet can go to an address.
export function sendable(b) {
  const last = isFour(b) ? b.slice(12) : b;
  if (last.every((x) => x === 0)) return false;
  return isFour(b) ? last[0] >> 4 !== 14 : b[0] !== 0xff;
}

// splitHost parses an address with or without a port: { host, bytes, port }. bytes is null for a name, port 0 for none.
export function splitHost(s) {
  if (s.length === 0 || s.length > 250) return null;
  const bracket = /^\[([^\]]*)\](?::(.*))?$/.exec(s);
  let host = s;
  let port;
  if (bracket) {
    [, host, port] = bracket;
    if (!host.includes(':')) return null;
  } else if (s.split(':').length === 2) {
    [host, port] = s.split(':');
  }
  if (port !== undefined && (!/^[1-9]\d{0,4}$/.test(port) || Number(port) > 65535)) return null;
  const bytes = parseAddress(host);
  if (bytes && (!sendable(bytes) || (host.includes(':') && isFour(bytes)))) return null;
  if (!bytes && !validName(host)) return null;
  return { host, bytes, port: Number(port ?? 0) };
}

function validName(host) {
  if (/^[\d.]*\d$/.test(host)) return false;
  const labels = host.replace(/\.$/, '').split('.');
  return labels.every((l) => /^[A-Za-z0-9_-]{1,63}$/.test(l) && !l.startsWith('-') && !l.endsWith('-'));
}
