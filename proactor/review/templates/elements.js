"use strict";
// Elements from names, attributes and text. Every text goes in as text, never as HTML.
const byId = (id) => document.getElementById(id);

function el(name, options = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "rows") made.style.gridRow = value;
    else if (key === "column") made.style.gridColumn = value;
    else if (key === "value") made.value = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function option(value, words, chosen) {
  const made = el("option", { value: String(value) }, words);
  made.selected = chosen;
  return made;
}

// A text as nodes, with the places of `values` marked.
function marked(text, values) {
  const plain = text.toLowerCase();
  const wanted = values.map((value) => value.trim().toLowerCase()).filter(Boolean);
  if (!wanted.length || plain.length !== text.length) return [text];
  const nodes = [];
  let done = 0;
  while (done < text.length) {
    const found = wanted.map((value) => [findWord(plain, value, done), value.length]).filter(([at]) => at >= 0);
    if (!found.length) break;
    const [at, length] = found.reduce((a, b) => (b[0] < a[0] || (b[0] === a[0] && b[1] > a[1]) ? b : a));
    nodes.push(text.slice(done, at), el("mark", {}, text.slice(at, at + length)));
    done = at + length;
  }
  return [...nodes, text.slice(done)];
}

// Where `word` stands in `text` from `from` on, not as a part of a longer one; -1 where it does not.
function findWord(text, word, from) {
  const inside = (a, b) => a !== undefined && b !== undefined && /[\p{L}\p{N}]/u.test(a) && /[\p{L}\p{N}]/u.test(b);
  for (let at = text.indexOf(word, from); at >= 0; at = text.indexOf(word, at + 1)) {
    if (!inside(text[at - 1], word[0]) && !inside(word.at(-1), text[at + word.length])) return at;
  }
  return -1;
}

function spanWords(window) {
  return window ? (window[0] === window[1] ? `turn ${window[0]}` : `turns ${window[0]} to ${window[1]}`) : "unknown";
}

function count(number, noun) {
  return `${number} ${noun}${number === 1 ? "" : "s"}`;
}
