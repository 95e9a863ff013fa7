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
