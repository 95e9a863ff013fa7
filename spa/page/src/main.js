import { card } from './card.js';
import { find, make, right, say, sleep, wrong } from './dom.js';
import { gatewayOf, profileOf, sameGateway, title } from './gateways.js';
import { canKnock } from './knock.js';
import { parseToken } from './token.js';
import { splitHost } from './address.js';
import * as store from './store.js';

const idle = 10 * 60_000; // ms without use, after which the page locks itself

// cards are those of the gateways. era counts how often the page was locked: what began before must not go on.
const state = { gateways: [], kept: new Set(), cards: new Map(), lock: null, timer: 0, until: 0, era: 0, busy: false };

// draw keeps the cards of gateways that stay, and what they show.
function draw() {
  for (const [g, c] of state.cards) {
    if (state.gateways.includes(g)) continue;
    c.stop();
    c.element.remove();
    state.cards.delete(g);
  }
  for (const g of state.gateways) {
    if (!state.cards.has(g)) state.cards.set(g, card(g, () => remove(g)));
    const { element, heading } = state.cards.get(g);
    heading.textContent = title(g, state.gateways);
    if (!element.isConnected) find('gateways').append(element);
  }
  const locked = store.kept() && !state.lock;
  find('locked').hidden = !locked;
  find('adding').hidden = locked;
  find('keep-row').hidden = !store.usable();
  find('lock').hidden = !state.lock && state.gateways.length === 0;
  find('lock').textContent = state.lock ? 'Lock' : 'Clear';
  if (!locked && state.gateways.length === 0) find('adding').open = true;
}

// focus goes to a gateway, or to where the next thing is to do: what had the focus may be gone.
function focus(gateway = state.gateways[0]) {
  const c = state.cards.get(gateway);
  if (!find('locked').hidden) find('locked-title').focus();
  else if (c) c.heading.focus();
  else find('adding').firstElementChild.focus();
}

// save stores what the user keeps. If that fails, it returns the message to show.
function save() {
  if (!state.lock) return '';
  if (!store.current(state.lock)) {
    leave();
    return 'Another window changed what this browser keeps: unlock again, and repeat the change.';
  }
  const content = state.gateways.filter((g) => state.kept.has(g)).map((g) => g.kept);
  if (!store.save(state.lock, content)) {
    if (!store.kept()) shut();
    return 'The browser has no room to keep it.';
  }
  if (content.length === 0) shut();
  return '';
}

function shut() {
  if (state.lock) store.shut(state.lock);
  state.lock = null;
}

// leave drops what this window knows of what the browser keeps.
function leave() {
  shut();
  state.era++;
  state.gateways = state.gateways.filter((g) => !state.kept.has(g));
  state.kept = new Set();
}

function remove(g) {
  const name = title(g, state.gateways);
  if (!confirm(`Remove ${name}? You need its token to add it again.`)) return;
  state.gateways = state.gateways.filter((x) => x !== g);
  const trouble = state.kept.delete(g) ? save() : '';
  draw();
  focus();
  say(trouble || `${name} is removed from this page. Its key works until it is revoked on the gateway.`, !!trouble);
}

function lock() {
  const said = state.lock ? 'Locked.' : 'Cleared.';
  leave();
  state.gateways = [];
  clearTimeout(state.timer);
  find('locked').reset();
  clearForm();
  draw();
  focus();
  say(said);
}

function clearForm() {
  find('add').reset();
  ['token', 'choice', 'hosts'].forEach(right);
  askForGateway();
  find('new-row').hidden = true;
}

// overtaken drops what this window knows, so that it does not overwrite what another one has kept.
function overtaken() {
  const had = state.lock !== null;
  if (had) leave();
  draw();
  if (had) say(`Another window changed what this browser keeps${store.kept() ? ': unlock again' : ''}.`);
}

const holdsSecrets = () => state.gateways.length > 0
  || ['token', 'passphrase', 'new', 'again'].some((id) => find(id).value !== '');

// putOff puts the lock off.
function putOff() {
  clearTimeout(state.timer);
  state.until = Date.now() + idle;
  state.timer = setTimeout(() => holdsSecrets() && lock(), idle);
}

// touched sees each use. Timers stop while a device sleeps and while the page is not shown: then it locks now.
function touched(event) {
  if (Date.now() > state.until && holdsSecrets()) {
    event.preventDefault();
    event.stopImmediatePropagation();
    putOff();
    lock();
  } else if (event.type === 'click' || event.type === 'keydown') {
    putOff();
  }
}

// working runs what a passphrase needs, one at a time, and shows its progress. It returns null if the page was locked
// meanwhile.
async function working(text, act) {
  const { era } = state;
  const progress = find('progress');
  say(text);
  state.busy = true;
  progress.hidden = false;
  await sleep(0);
  const result = await act((part) => { progress.value = part; });
  progress.hidden = true;
  state.busy = false;
  return era === state.era ? result : null;
}

async function unlock(event) {
  event.preventDefault();
  if (state.busy) return;
  const passphrase = find('passphrase').value;
  find('passphrase').value = '';
  const opened = await working('Unlocking …', (tell) => store.open(passphrase, tell));
  if (!opened && store.kept()) {
    wrong('passphrase', 'Wrong passphrase, or what this browser keeps is damaged.');
    return;
  }
  if (!opened || !store.current(opened.lock)) {
    if (opened) store.shut(opened.lock);
    draw();
    focus();
    say('Meanwhile, what this browser keeps was changed or forgotten.');
    return;
  }
  right('passphrase');
  const kept = opened.content.map(gatewayOf).filter((g) => !g.error);
  state.lock = opened.lock;
  state.gateways = [...kept, ...state.gateways.filter((g) => !kept.some((k) => sameGateway(k, g)))];
  state.kept = new Set(kept);
  draw();
  focus();
  say('Unlocked.');
}

async function add(event) {
  event.preventDefault();
  if (state.busy) return;
  const gateway = gatewayOf({ ...entered(), hosts: find('hosts').value });
  if (gateway.error) {
    askForGateway();
    wrong(gateway.field, gateway.error);
    return;
  }
  const old = state.gateways.find((g) => sameGateway(g, gateway));
  const { name } = gateway.profile;
  if (old && old.kept.token !== gateway.kept.token && !confirm(`Replace the key of ${name}? The old one is lost.`)) {
    say(`${name} was not replaced.`);
    return;
  }
  const keep = find('keep').checked || state.kept.has(old);
  if (keep && !state.lock && !(await newLock())) return;
  state.gateways = [...state.gateways.filter((g) => g !== old), gateway];
  state.kept.delete(old);
  if (keep) state.kept.add(gateway);
  const trouble = keep ? save() : '';
  if (trouble) {
    state.kept.delete(gateway);
    if (!state.gateways.includes(gateway)) state.gateways.push(gateway);
  }
  clearForm();
  find('adding').open = false;
  draw();
  focus(gateway);
  say(keep && !trouble ? `${name} is kept in this browser.`
    : `${trouble} ${name} is there until you close or reload this page.`.trim(), !!trouble);
}

// newLock makes the lock of a new passphrase, and reports whether there is one.
async function newLock() {
  const passphrase = find('new').value;
  if (passphrase.length < 12) {
    wrong('new', 'The passphrase must have at least 12 characters.');
    return false;
  }
  if (passphrase !== find('again').value) {
    wrong('again', 'The passphrases differ.');
    return false;
  }
  state.lock = await working('Sealing …', (tell) => store.create(passphrase, tell));
  return state.lock !== null;
}

const entered = () => ({ token: find('token').value, choice: find('choice').value });

// askForGateway shows the field for the name of a gateway if the token is that of a fleet.
function askForGateway() {
  const token = parseToken(find('token').value);
  const names = [...token?.gateways?.keys() ?? []];
  const few = [...names.slice(0, 12), ...names.length > 12 ? ['…'] : []].join(', ');
  const known = [few && `one of ${few}`, token?.address && `a name in ${token.address}`].filter(Boolean).join(', or ');
  find('choice-row').hidden = !token?.gateways;
  find('choice-help').textContent = `Its name: ${known}. Add the token again for another gateway.`;
  find('choices').replaceChildren(...names.map((value) => make('option', { value })));
  askForHosts();
}

// askForHosts shows the field for addresses if that of the gateway is a name.
function askForHosts() {
  const at = splitHost(profileOf(entered())?.address ?? '');
  find('hosts-row').hidden = !at || at.bytes !== null;
  find('host').textContent = at?.host ?? 'its name';
}

// take shows a token that was not typed.
function take(token, whence) {
  putOff();
  find('token').value = token;
  find('adding').open = true;
  right('token');
  askForGateway();
  const p = parseToken(token);
  say((find('adding').hidden ? `Unlock first: the token of the ${whence} is then below.`
    : `The token of the ${whence} is below: add it.`)
    + (p ? ` It is for ${p.client} at ${p.name}${p.address && `, ${p.address}`}.` : ''));
}

// fromFragment takes a token out of the page's link. A browser does not send that part to a server.
function fromFragment() {
  const token = location.hash.slice(1);
  if (token === '') return '';
  history.replaceState(null, '', location.href.split('#')[0]);
  return token;
}

async function fromPicture() {
  const [file] = find('picture').files;
  if (!file) return;
  const detector = new BarcodeDetector({ formats: ['qr_code'] });
  const found = await createImageBitmap(file).then((image) => detector.detect(image)).catch(() => []);
  find('picture').value = '';
  if (found.length === 1) take(found[0].rawValue, 'picture');
  else wrong('picture', 'There is no QR code in that picture, or more than one.');
}

// install lets the page work offline, where it was written by spa-keygen page --dir and is served by HTTPS.
function install() {
  if (!location.protocol.startsWith('http') || !document.querySelector('link[rel=manifest]')) return;
  const worker = 'worker.js';
  const trusted = window.trustedTypes?.createPolicy('sallyport', { createScriptURL: () => worker });
  navigator.serviceWorker?.register(trusted?.createScriptURL('') ?? worker).catch(() => {});
}

function start() {
  const token = fromFragment();
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
  find('token').oninput = askForGateway;
  find('choice').oninput = askForHosts;
  find('picture').onchange = fromPicture;
  find('keep').onchange = () => { find('new-row').hidden = !find('keep').checked || state.lock !== null; };
  find('forget').onclick = () => {
    if (!confirm('Forget all gateways that this browser keeps?')) return;
    store.forget();
    draw();
    focus();
    say('Forgotten.');
  };
  for (const what of ['click', 'keydown', 'focus', 'pageshow']) addEventListener(what, touched, true);
  document.addEventListener('visibilitychange', touched, true);
  addEventListener('hashchange', () => {
    const next = fromFragment();
    if (next) take(next, 'link');
  });
  store.changed(overtaken);
  putOff();
  draw();
  install();
  if (!canKnock()) say('WebRTC is switched off in this browser, so it cannot knock.', true);
  else if (token) take(token, 'link');
}

start();
