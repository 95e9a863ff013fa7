// Every vector of the protocol that concerns a client which seals and imports.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { checkBrowserVector, checkToken, checkPacket, checkSipHash, parseVector } from '../src/check.js';

function vectors(dir) {
  const at = new URL(`../../testdata/${dir}/`, import.meta.url);
  return readdirSync(at).map((name) => [name, parseVector(readFileSync(new URL(name, at), 'utf8'))]);
}

test('SipHash', () => assert.equal(checkSipHash(), ''));

let packets = 0;
let tokens = 0;
for (const [name, v] of vectors('vectors')) {
  const verdict = v.verdict[0];
  if (verdict.startsWith('token')) {
    tokens++;
    test(name, () => assert.equal(checkToken(v), ''));
  } else if (['ok', 'malformed', 'stale', 'revoked', 'retired'].includes(verdict)) {
    packets++;
    test(name, () => assert.equal(checkPacket(v), ''));
  }
}

for (const [name, v] of vectors('browser')) test(`browser/${name}`, () => assert.equal(checkBrowserVector(v), ''));

test('there are vectors', () => assert.ok(packets > 60 && tokens > 40, `${packets} packets, ${tokens} tokens`));
