import { card } from './card.js';
import { find, sleep } from './dom.js';
import { gatewayOf, sameGateway } from './gateways.js';
import { canKnock } from './knock.js';
import { parseToken } from './token.js';
import { splitHost } from './address.js';
import * as store from './store.js';

const idle = 10 * 60_000; // ms without use, after which the page locks itself

const state = { gateways: [], kept: new Set(), lock: null, timer: 0 };

function say(text, bad = false) {
  find('say').textContent = text;
  find('say').className = bad ? 'bad' : '';
}

function draw() {
  const locked = store.kept() && !state.lock;
  find('locked').hidden = !locked;
  find('adding').hidden = locked;
  find('lock').hidden = !state.lock && state.gateways.length === 0;
  find('lock').textContent = state.lock ? 'Lock' : 'Clear';
  find('gateways').replaceChildren(...state.gateways.map((g) => card(g, () => remove(g))));
  if (!locked && state.gateways.length === 0) find('adding').open = true;
}

function save() {
  if (!state.lock) return;
  const content = state.gateways.filter((g) => state.kept.has(g)).map((g) => g.kept);
  if (content.length > 0) {
    store.save(state.lock, content);
  } else {
    store.forget();
    state.lock = null;
  }
}

function remove(g) {
  if (!confirm(`Remove ${g.profile.name}? You need its token to add it again.`)) return;
  state.gateways = state.gateways.filter((x) => x !== g);
  state.kept.delete(g);
  save();
  draw();
  say(`${g.profile.name} is removed from this page. Its key works until it is revoked on the gateway.`);
}

function lock() {
  if (state.lock) store.shut(state.lock);
  Object.assign(state, { gateways: [], kept: new Set(), lock: null });
  clearTimeout(state.timer);
  draw();
  say('');
}

// overtaken drops what this window knows, so that it does not overwrite what another one has kept.
function overtaken() {
  if (state.lock) {
    lock();
    say('Another window changed what this browser keeps: unlock again.');
    return;
  }
  draw();
}

// touched puts the lock off.
function touched() {
  clearTimeout(state.timer);
  if (state.gateways.length > 0) state.timer = setTimeout(lock, idle);
}

// busy shows progress while a passphrase is worked on.
const busy = (what) => (part) => say(`${what} ${Math.round(part * 100)} %`);

async function unlock(event) {
  event.preventDefault();
  const passphrase = find('passphrase').value;
  find('passphrase').value = '';
  say('Unlocking …');
  await sleep(0);
  const opened = await store.open(passphrase, busy('Unlocking'));
  if (!opened) {
    say('Wrong passphrase, or what this browser keeps is damaged.', true);
    find('passphrase').focus();
    return;
  }
  state.lock = opened.lock;
  state.gateways = opened.content.map(gatewayOf).filter((g) => typeof g === 'object');
  state.kept = new Set(state.gateways);
  draw();
  touched();
  say('Unlocked.');
}

async function add(event) {
  event.preventDefault();
  const gateway = gatewayOf({ token: find('token').value, hosts: find('hosts').value });
  if (typeof gateway === 'string') {
    askForHosts();
    say(gateway || 'Enter the address of the gateway.', true);
    return;
  }
  const old = state.gateways.find((g) => sameGateway(g, gateway));
  const { name } = gateway.profile;
  if (old && old.kept.token !== gateway.kept.token && !confirm(`Replace the key of ${name}? The old one is lost.`)) {
    say(`${name} was not replaced.`);
    return;
  }
  const keep = find('keep').checked;
  if (keep && !state.lock && !(await newLock())) return;
  state.gateways = [...state.gateways.filter((g) => g !== old), gateway];
  state.kept.delete(old);
  if (keep) state.kept.add(gateway);
  save();
  find('add').reset();
  find('adding').open = false;
  find('hosts-row').hidden = find('new-row').hidden = true;
  draw();
  touched();
  say(keep ? `${name} is kept in this browser.` : `${name} is there until you close or reload this page.`);
}

async function newLock() {
  const passphrase = find('new').value;
  if (passphrase.length < 12 || passphrase !== find('again').value) {
    say(passphrase.length < 12 ? 'The passphrase must have at least 12 characters.' : 'The passphrases differ.', true);
    find('new').focus();
    return false;
  }
  say('Sealing …');
  await sleep(0);
  state.lock = await store.create(passphrase, busy('Sealing'));
  return true;
}

// askForHosts shows the field for addresses if the token has a name.
function askForHosts() {
  const profile = parseToken(find('token').value);
  find('hosts-row').hidden = !profile || splitHost(profile.address).bytes !== null;
}

// fromFragment takes a token out of the page's link. A browser does not send that part to a server.
function fromFragment() {
  if (location.hash.length < 2) return;
  find('token').value = location.hash.slice(1);
  history.replaceState(null, '', location.pathname + location.search);
  find('adding').open = true;
  askForHosts();
  say('The token of the link is below: add it.');
}

async function fromPicture() {
  const [file] = find('picture').files;
  if (!file) return;
  const found = await new BarcodeDetector({ formats: ['qr_code'] }).detect(await createImageBitmap(file));
  find('picture').value = '';
  if (found.length !== 1) {
    say('There is no QR code in that picture, or more than one.', true);
    return;
  }
  find('token').value = found[0].rawValue;
  askForHosts();
  say('The token is below: add it.');
}

// install lets the page work offline, where it was written by spa-keygen page --dir and is served by HTTPS.
function install() {
  if (!location.protocol.startsWith('http') || !document.querySelector('link[rel=manifest]')) return;
  const worker = 'worker.js';
  const trusted = window.trustedTypes?.createPolicy('sallyport', { createScriptURL: () => worker });
  navigator.serviceWorker?.register(trusted?.createScriptURL('') ?? worker).catch(() => {});
}

function start() {
  if (window.top !== window.self || !window.isSecureContext) {
    say(window.isSecureContext ? 'This page does not work inside another.'
      : 'This page was not served by HTTPS: anyone on the way could have changed it, and would get your keys. '
        + 'Open it by HTTPS, or from a file.', true);
    return;
  }
  find('picture-row').hidden = !('BarcodeDetector' in window);
  find('locked').onsubmit = unlock;
  find('add').onsubmit = add;
  find('lock').onclick = lock;
  find('token').oninput = askForHosts;
  find('picture').onchange = fromPicture;
  find('keep').onchange = () => { find('new-row').hidden = !find('keep').checked || state.lock !== null; };
  find('forget').onclick = () => {
    if (!confirm('Forget all gateways that this browser keeps?')) return;
    store.forget();
    draw();
    say('Forgotten.');
  };
  for (const what of ['click', 'keydown']) addEventListener(what, touched);
  addEventListener('hashchange', fromFragment);
  store.changed(overtaken);
  draw();
  install();
  if (!canKnock()) say('WebRTC is switched off in this browser, so it cannot knock.', true);
  fromFragment();
}

start();
