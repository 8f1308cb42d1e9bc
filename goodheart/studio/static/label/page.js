// What the page was served with, and small helpers to fill it.

export const setup = JSON.parse(document.getElementById("page").textContent);

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// The words of the person's language: say("rank", {n: 2}).
export function say(key, values = {}) {
  const text = setup.words[key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  return text.replace(/\{(\w+)\}/g, (braces, name) => (name in values ? String(values[name]) : braces));
}

// The one place where text becomes elements. It takes only what the server has made safe (goodheart/studio/markdown.py).
const policy = window.trustedTypes?.createPolicy("goodheart", { createHTML: (html) => html });

export function setHtml(element, html) {
  element.innerHTML = policy ? policy.createHTML(html) : html;
}

// make("button", {class: "chip", "aria-label": "..."}, "2")
export function make(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...inside);
  return element;
}

export function announce(text) {
  $("#live").textContent = text;
}

// The words of a flag or a score that the campaign named; without an entry its own name.
export function nameOf(kind, name) {
  return setup.words[`${kind}.${name}`] ?? name.replaceAll("_", " ");
}
