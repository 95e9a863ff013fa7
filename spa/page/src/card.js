// A gateway with its services, and what became of the last knock on each.

import { find, make } from './dom.js';
import { knock } from './knock.js';
import { reasons } from './reasons.js';

const durations = [[30, '30 s'], [120, '2 min'], [600, '10 min'], [3600, '1 h'], [28800, '8 h']];

const clock = (at) => new Date(at).toLocaleTimeString();

const left = (ms) => {
  const s = Math.ceil(ms / 1000);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
};

// card returns the element of a gateway. remove is called when it should go.
export function card(gateway, remove) {
  const { profile } = gateway;
  const list = profile.services.map((s) => service(gateway, s.name, s.ports.join(', ')));
  const away = make('button', { type: 'button', textContent: 'Remove' });
  away.onclick = remove;
  return make('section', { className: 'card', 'aria-label': `Gateway ${profile.name}` },
    make('h2', { textContent: profile.name }),
    make('p', { className: 'soft', textContent: `${profile.client} at ${gateway.hosts}` }),
    ...list,
    make('div', { className: 'row' }, away));
}

function service(gateway, name, ports) {
  const state = make('div', { className: 'state' });
  const span = make('select', { 'aria-label': `How long ${name} stays open` },
    ...durations.map(([value, textContent]) => make('option', { value, textContent })));
  const open = make('button', { type: 'button', className: 'main', textContent: `Open ${name}` });
  const shut = make('button', { type: 'button', textContent: `Close ${name}` });
  const view = { gateway, name, state, buttons: [open, shut], timer: 0 };
  open.onclick = () => run(view, { type: 'open', for: Number(span.value) * 1000, services: [name] });
  shut.onclick = () => run(view, { type: 'close', for: 0, services: [name] });
  return make('div', { className: 'service' },
    make('h3', { textContent: name }), make('p', { className: 'soft', textContent: ports }),
    make('div', { className: 'row' }, open, span, shut), state);
}

// announce is read aloud, unlike the countdown.
const announce = (text) => { find('say').textContent = text; };

function show(view, kind, ...content) {
  clearInterval(view.timer);
  view.state.className = `state ${kind}`;
  view.state.replaceChildren(...content);
}

async function run(view, command) {
  const { gateway, name } = view;
  const began = Date.now();
  view.buttons.forEach((b) => { b.disabled = true; });
  show(view, '', 'Knocking …');
  try {
    const outcome = await knock(gateway, command, new AbortController().signal);
    await told(view, command, outcome, began);
  } catch (e) {
    show(view, 'bad', `This browser cannot knock: ${e.message}`);
    announce(`${name}: this browser cannot knock`);
  }
  view.buttons.forEach((b) => { b.disabled = false; });
}

async function told(view, command, outcome, began) {
  const { gateway, name } = view;
  if (outcome === 'done' && command.type === 'open') {
    announce(`${name} is open`);
    countDown(view, began + command.for);
  } else if (outcome === 'done') {
    announce(`${name} is closed`);
    show(view, 'good', `${name} is closed for new connections.`);
  } else if (outcome === 'refused') {
    announce(`${name}: refused`);
    show(view, 'bad', `The gateway refused. Its log says why: perhaps ${gateway.profile.client} may not have ${name}, `
      + 'or not now, or the key has expired.');
  } else {
    announce(`${name}: no answer`);
    const list = await reasons(outcome, gateway);
    show(view, 'bad', 'No answer. The likeliest reasons first:',
      make('ol', {}, ...list.map((textContent) => make('li', { textContent }))));
  }
}

// countDown counts the time that was asked for. A grant may end sooner, and connections outlive it.
function countDown(view, until) {
  const tick = () => {
    const rest = until - Date.now();
    if (rest > 0) {
      view.state.textContent = `${view.name} is open: connect within ${left(rest)}, by ${clock(until)}.`;
      return;
    }
    show(view, '', `${view.name} was open until ${clock(until)}.`);
  };
  show(view, 'good');
  view.timer = setInterval(tick, 1000);
  tick();
}
