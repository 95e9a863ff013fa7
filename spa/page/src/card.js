// A gateway with its services, and what became of the last knock on each.

import { make, say } from './dom.js';
import { knock } from './knock.js';
import { reasons } from './reasons.js';

const durations = [[30, '30 s'], [120, '2 min'], [600, '10 min'], [3600, '1 h']];

const clock = (at) => new Date(at).toLocaleTimeString();

const left = (ms) => {
  const s = Math.ceil(ms / 1000);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
};

let made = 0;

// card returns what shows a gateway: its element, its heading, and stop, after which nothing of it runs. remove is
// called when it should go.
export function card(gateway, remove) {
  const { profile } = gateway;
  const ended = new AbortController();
  const heading = make('h2', { id: `gateway-${made++}`, tabIndex: -1 });
  const views = profile.services.map((s) => ({ gateway, name: s.name, ports: s.ports.join(', '), heading, timer: 0,
    busy: false, signal: ended.signal }));
  const away = make('button', { type: 'button', textContent: 'Remove', 'aria-describedby': heading.id });
  away.onclick = remove;
  const element = make('section', { className: 'card', 'aria-labelledby': heading.id }, heading,
    make('p', { className: 'soft', textContent: `${profile.client} at ${gateway.hosts}` }),
    ...views.map(service), make('div', { className: 'row' }, away));
  const stop = () => {
    ended.abort();
    views.forEach((v) => clearInterval(v.timer));
  };
  return { element, heading, stop };
}

function service(view) {
  const { name, heading } = view;
  view.state = make('div', { className: 'state' });
  const span = make('select', { 'aria-label': `How long ${name} stays open`, 'aria-describedby': heading.id },
    ...durations.map(([value, textContent]) => make('option', { value, textContent })));
  const button = (verb, className) => make('button', { type: 'button', className, textContent: `${verb} ${name}`,
    'aria-describedby': heading.id });
  const open = button('Open', 'main');
  const shut = button('Close', '');
  view.buttons = [open, shut];
  open.onclick = () => run(view, { type: 'open', for: Number(span.value) * 1000, services: [name] });
  shut.onclick = () => run(view, { type: 'close', for: 0, services: [name] });
  return make('div', { className: 'service' },
    make('h3', { textContent: name }), make('p', { className: 'soft', textContent: view.ports }),
    make('div', { className: 'row' }, open, span, shut), view.state);
}

// announce is read aloud, unlike the countdown.
const announce = (view, text) => say(`${view.heading.textContent}: ${view.name} ${text}`);

function show(view, kind, ...content) {
  clearInterval(view.timer);
  view.state.className = `state ${kind}`;
  view.state.replaceChildren(...content);
}

// waiting marks the buttons of a service, which keep the focus.
function waiting(view, busy) {
  view.busy = busy;
  view.buttons.forEach((b) => b.setAttribute('aria-disabled', String(busy)));
}

async function run(view, command) {
  if (view.busy) return;
  const began = Date.now();
  waiting(view, true);
  show(view, '', 'Knocking …');
  announce(view, 'knocking …');
  try {
    const outcome = await knock(view.gateway, command, view.signal);
    if (!view.signal.aborted) await told(view, command, outcome, began);
  } catch (e) {
    show(view, 'bad', `This browser cannot knock: ${e.message}`);
    announce(view, 'cannot be knocked for by this browser');
  }
  waiting(view, false);
}

async function told(view, command, outcome, began) {
  const { gateway, name } = view;
  if (outcome === 'done' && command.type === 'open') {
    announce(view, 'is open');
    countDown(view, began + command.for);
  } else if (outcome === 'done') {
    announce(view, 'is closed');
    show(view, 'good', `${name} is closed for new connections.`);
  } else if (outcome === 'refused') {
    announce(view, 'was refused');
    show(view, 'bad', `The gateway refused. Its log says why: perhaps ${gateway.profile.client} may not have ${name}, `
      + 'or not now, or the key has expired.');
  } else {
    const list = await reasons(outcome, gateway);
    if (view.signal.aborted) return;
    announce(view, `got no answer. ${list[0]}`);
    show(view, 'bad', 'No answer. The likeliest reasons first:',
      make('ol', {}, ...list.map((textContent) => make('li', { textContent }))));
  }
}

// countDown counts the time that was asked for. A grant may end sooner, and connections outlive it.
function countDown(view, until) {
  const tick = () => {
    const rest = until - Date.now();
    if (rest > 0) {
      view.state.textContent = `${view.name} is open: connect within ${left(rest)}, by ${clock(until)} at the latest.`;
      return;
    }
    show(view, '', `${view.name} was open until ${clock(until)}.`);
    announce(view, 'is no longer open');
  };
  show(view, 'good');
  view.timer = setInterval(tick, 1000);
  tick();
}
