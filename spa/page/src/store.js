// The gateways that this browser keeps, sealed with a passphrase in its own store.

import { xchacha20poly1305 } from '@noble/ciphers/chacha.js';
import { argon2idAsync } from '@noble/hashes/argon2.js';
import { ascii, concat, text } from './bytes.js';

const place = 'sallyport';
const label = ascii('sallyport page store 1');

// cost is that of Argon2id (RFC 9106): 64 MiB, once over it.
const cost = { t: 1, m: 64 * 1024, p: 1 };

// read returns what is kept, null if that is nothing, and undefined if this browser lets the page keep nothing.
function read() {
  try {
    return localStorage.getItem(place);
  } catch {
    return undefined;
  }
}

export const usable = () => read() !== undefined;

export const kept = () => typeof read() === 'string';

export const forget = () => localStorage.removeItem(place);

const derive = (passphrase, salt, tell) => argon2idAsync(
  new TextEncoder().encode(passphrase.normalize('NFKC')), salt, { ...cost, dkLen: 32, onProgress: tell });

const random = (n) => crypto.getRandomValues(new Uint8Array(n));

// create returns a lock for a new passphrase. Nothing is stored yet.
export async function create(passphrase, tell) {
  const salt = random(16);
  return { salt, key: await derive(passphrase, salt, tell), seen: null };
}

// changed calls act when another window has changed what is kept.
export const changed = (act) => addEventListener('storage', (e) => { if (e.key === place || e.key === null) act(); });

// open returns the lock and what it keeps, or null if the passphrase is wrong or what is kept is damaged.
export async function open(passphrase, tell) {
  try {
    const seen = read();
    const all = ascii(atob(seen));
    const salt = all.slice(0, 16);
    const key = await derive(passphrase, salt, tell);
    const plain = xchacha20poly1305(key, all.subarray(16, 40), concat(label, salt)).decrypt(all.subarray(40));
    return { lock: { salt, key, seen }, content: JSON.parse(new TextDecoder().decode(plain)) };
  } catch {
    return null;
  }
}

// current reports whether what is kept is still what a lock has last read or written: another window may change it,
// even while this one waits for a passphrase or an answer.
export const current = (lock) => read() === lock.seen;

// save seals content in place of what was there, or removes that if there is no content. It reports whether the
// browser took it.
export function save(lock, content) {
  if (content.length === 0) {
    forget();
    lock.seen = null;
    return true;
  }
  const nonce = random(24);
  const plain = new TextEncoder().encode(JSON.stringify(content));
  const box = xchacha20poly1305(lock.key, nonce, concat(label, lock.salt)).encrypt(plain);
  const sealed = btoa(text(concat(lock.salt, nonce, box)));
  try {
    localStorage.setItem(place, sealed);
  } catch {
    return false;
  }
  lock.seen = sealed;
  return true;
}

// shut makes a lock useless.
export const shut = (lock) => lock.key.fill(0);
