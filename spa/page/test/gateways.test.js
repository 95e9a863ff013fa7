// What is kept of a fleet.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { parseVector } from '../src/check.js';
import { gatewayAt } from '../src/fleet.js';
import { gatewayOf, sameGateway, title } from '../src/gateways.js';

const vector = (name) => parseVector(readFileSync(new URL(`../../testdata/fleet/${name}.txt`, import.meta.url), 'utf8'));

const [token] = vector('token').token;

const added = (choice, hosts) => gatewayOf({ token, choice, hosts });

test('a gateway of a fleet is the same once it was kept, and what is kept opens no other', () => {
  const web = added(' web7', '192.0.2.1');
  assert.match(web.kept.token, /^spa1/);
  const again = gatewayOf(JSON.parse(JSON.stringify(web.kept)));
  assert.deepEqual(again, web);
  assert.equal(title(again, [again]), 'prod/web7');
  assert.deepEqual(again.ports, [62201]);
  const keys = ['fleet gate key', 'fleet client key'].map((name) => vector('token')[name][0]);
  for (const key of keys) assert.ok(!Buffer.from(web.kept.token.slice(4), 'base64url').toString('hex').includes(key));
});

test('gateways of a fleet differ', () => {
  const web = added('web7', '192.0.2.1');
  const db = added('db1');
  assert.deepEqual([db.hosts, db.ports, title(db, [db, web])], ['198.51.100.7', [62202], 'prod/db1']);
  assert.ok(!sameGateway(web, db) && sameGateway(web, added('web7', '192.0.2.2')));
});

test('what a fleet has no gateway for is refused', () => {
  const [none] = vector('token-no-domain').token;
  for (const choice of ['', 'Web7', 'web7.example.net', 'a'.repeat(33)]) assert.equal(added(choice).field, 'choice');
  assert.equal(gatewayOf({ token: none, choice: 'web7' }).field, 'choice');
  assert.equal(gatewayOf({ token: none, choice: '0' }).hosts, '192.0.2.1');
  assert.equal(added('web7').field, 'hosts');
  assert.equal(gatewayAt({ gateways: new Map(), address: `${'a.'.repeat(123)}a` }, 'web7'), null);
});
