// The gateways that this browser keeps, sealed with a passphrase in its own store.

import { xchacha20poly1305 } from '@noble/ciphers/chacha.js';
import { argon2idAsync } from '@noble/hashes/argon2.js';
import { ascii, concat, text } from './bytes.js';

const place = 'sallyport';
const label = ascii('sallyport page store 1');

// cost is that of Argon2id (RFC 9106): 64 MiB, once over it.
const cost = { t: 1, m: 64 * 1024, p: 1 };

export const kept = () => localStorage.getItem(place) !== null;

export const forget = () => localStorage.removeItem(place);

const derive = (passphrase, salt, tell) => argon2idAsync(
  new TextEncoder().encode(passphrase.normalize('NFKC')), salt, { ...cost, dkLen: 32, onProgress: tell });

const random = (n) => crypto.getRandomValues(new Uint8Array(n));

// create returns a lock for a new passphrase. Nothing is stored yet.
export async function create(passphrase, tell) {
  const salt = random(16);
  return { salt, key: await derive(passphrase, salt, tell) };
}

// changed calls act when another window has changed what is kept.
export const changed = (act) => addEventListener('storage', (e) => { if (e.key === place || e.key === null) act(); });

// open returns the lock and what it keeps, or null if the passphrase is wrong or what is kept is damaged.
export async function open(passphrase, tell) {
  try {
    const all = ascii(atob(localStorage.getItem(place)));
    const salt = all.slice(0, 16);
    const key = await derive(passphrase, salt, tell);
    const plain = xchacha20poly1305(key, all.subarray(16, 40), concat(label, salt)).decrypt(all.subarray(40));
    return { lock: { salt, key }, content: JSON.parse(new TextDecoder().decode(plain)) };
  } catch {
    return null;
  }
}

// save seals content, in place of what was there.
export function save(lock, content) {
  const nonce = random(24);
  const plain = new TextEncoder().encode(JSON.stringify(content));
  const box = xchacha20poly1305(lock.key, nonce, concat(label, lock.salt)).encrypt(plain);
  localStorage.setItem(place, btoa(text(concat(lock.salt, nonce, box))));
}

// shut makes a lock useless.
export const shut = (lock) => lock.key.fill(0);

