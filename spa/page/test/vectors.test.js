// Every vector of the protocol that concerns a client which seals and imports.

import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { test } from 'node:test';
import { checkOf, checkSipHash, parseVector } from '../src/check.js';

test('SipHash', () => assert.equal(checkSipHash(), ''));

let checked = 0;
for (const dir of ['vectors', 'browser', 'fleet']) {
  const at = new URL(`../../testdata/${dir}/`, import.meta.url);
  for (const name of readdirSync(at)) {
    const v = parseVector(readFileSync(new URL(name, at), 'utf8'));
    const check = checkOf(v);
    if (!check) continue;
    checked++;
    test(`${dir}/${name}`, () => assert.equal(check(v), ''));
  }
}

test('there are vectors', () => assert.ok(checked > 150, `${checked} vectors`));
