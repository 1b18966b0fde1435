"use strict";
// Shows the entries of a page that a reader asks for. All of them lie in the page, drawn and packed
// (templating.py). `matches` and `orders` say how they are filtered and sorted, `noun` what they are
// called, `section` where they stand.
async function showEntries({ noun, section, matches, orders }) {
  const PAGE = 20;
  const form = document.getElementById("filters");
  const list = document.getElementById("entries");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  if (!form || !("DecompressionStream" in window)) return; // an old browser keeps the first page

  const packed = atob(document.getElementById("packed").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const entries = JSON.parse(await new Response(unpacked).text());
  const usual = Object.fromEntries(new FormData(form));
  let chosen = entries;
  let shown = 0;

  function show(count) {
    const template = document.createElement("template");
    template.innerHTML = chosen.slice(shown, shown + count).map((entry) => entry.html).join("");
    if (shown === 0) {
      list.replaceChildren();
      template.content.querySelector("details")?.setAttribute("open", "");
    }
    list.append(template.content);
    shown = Math.min(shown + count, chosen.length);
    const left = chosen.length - shown;
    more.hidden = left === 0;
    more.textContent = `show ${Math.min(PAGE, left)} more`;
    found.textContent = `${chosen.length} of ${entries.length} ${noun}`
      + (left ? `, ${shown} of them shown.` : ".");
  }

  function apply() {
    const asked = Object.fromEntries(new FormData(form));
    const words = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
    chosen = entries.filter((entry) => matches(entry, asked)
      && words.every((word) => entry.text.includes(word)));
    if (asked.order) chosen.sort(orders[asked.order]);
    list.dataset.layout = asked.layout ?? "";
    shown = 0;
    show(PAGE);
  }

  function remember() { // so that a link or a reload shows the same entries
    const asked = [...new FormData(form)].filter(([name, value]) => value !== usual[name]);
    history.replaceState(null, "", asked.length ? `#${section}?${new URLSearchParams(asked)}` : `#${section}`);
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => { apply(); remember(); });
  form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
  more.addEventListener("click", () => show(PAGE));
  const [place, asked] = location.hash.slice(1).split("?");
  for (const [name, value] of new URLSearchParams(asked)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  apply();
  if (asked) document.getElementById(place)?.scrollIntoView();
}
