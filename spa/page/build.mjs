// Builds knock.html, the page in one file, from src. With a file, builds that instead: the checks of the cryptography,
// for a browser test.

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));

async function bundle(entry, globalName) {
  const result = await build({
    entryPoints: [here(entry)], bundle: true, minify: true, write: false, format: 'iife', globalName, charset: 'ascii',
    target: ['chrome109', 'firefox115', 'safari16'], legalComments: 'none', absWorkingDir: here('.'),
  });
  return result.outputFiles[0].text.trim();
}

const checks = process.argv[2];
if (checks) {
  writeFileSync(checks, `<!doctype html><script>${await bundle('src/check.js', 'checks')}</script>`);
  process.exit();
}

const script = await bundle('src/main.js');
const style = await bundle('src/page.css');
if (/<\/(script|style)/i.test(script + style)) throw new Error('the script ends its own element');

const hash = (text) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
const policy = [
  "default-src 'none'", `script-src ${hash(script)}`, `style-src ${hash(style)}`, "connect-src 'self'",
  "worker-src 'self'", "manifest-src 'self'",
  "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'", "trusted-types sallyport", "img-src 'self'",
].join('; ');

const notice = `<!-- Made by spa/page/build.mjs from spa/page/src. Contains @noble/hashes and @noble/ciphers,
Copyright (c) Paul Miller, MIT License. -->`;
const page = readFileSync(here('src/page.html'), 'utf8')
  .replace('<!doctype html>\n', `<!doctype html>\n${notice}\n`)
  .replace('{{policy}}', () => policy).replace('{{style}}', () => style).replace('{{script}}', () => script);
writeFileSync(here('knock.html'), page);
