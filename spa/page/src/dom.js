// Elements. Texts are only ever set as text.

export const find = (id) => document.getElementById(id);

// make returns an element with properties and children.
export function make(tag, properties = {}, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-')) e.setAttribute(name, value);
    else e[name] = value;
  }
  e.append(...children);
  return e;
}

export const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

// say shows a sentence above all else, and has it read aloud.
export function say(text, bad = false) {
  find('say').textContent = text;
  find('say').className = bad ? 'bad' : '';
}

// wrong shows what to correct in a field, and moves the focus there.
export function wrong(id, text) {
  right(id);
  const field = find(id);
  const before = field.getAttribute('aria-describedby');
  say(text, true);
  field.setAttribute('aria-invalid', 'true');
  field.setAttribute('aria-describedby', before ? `${before} say` : 'say');
  field.focus();
  field.addEventListener('input', () => right(id), { once: true });
}

// right takes back that a field is wrong.
export function right(id) {
  const field = find(id);
  const left = (field.getAttribute('aria-describedby') ?? '').replace(/ ?\bsay$/, '');
  field.removeAttribute('aria-invalid');
  if (left) field.setAttribute('aria-describedby', left);
  else field.removeAttribute('aria-describedby');
}
