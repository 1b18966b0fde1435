"use strict";
// Shows the dialogues that a reader asks for. All of them lie in the page, drawn and packed (talks.py).
(async () => {
  const PAGE = 20;
  const form = document.getElementById("filters");
  const list = document.getElementById("talks");
  const found = document.getElementById("found");
  const more = document.getElementById("more");
  if (!("DecompressionStream" in window)) return; // an old browser keeps the first page

  const packed = atob(document.getElementById("packed").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const talks = JSON.parse(await new Response(unpacked).text());

  const orders = {
    gained: (a, b) => b.gain[0] - a.gain[0] || b.gain[1] - a.gain[1],
    lost: (a, b) => a.gain[0] - b.gain[0] || a.gain[1] - b.gain[1],
    worst: (a, b) => a.after - b.after,
    best: (a, b) => b.after - a.after,
  };
  const changes = { gained: (gain) => gain > 0, lost: (gain) => gain < 0, same: (gain) => gain === 0 };
  let chosen = talks;
  let shown = 0;

  function matches(talk, asked, words) {
    if (asked.change && !changes[asked.change](talk.gain[0])) return false;
    if (asked.outcome) {
      const wanted = (pair) => pair === `${asked.outcome} ${asked.tool}`
        || (!asked.tool && pair.startsWith(`${asked.outcome} `));
      if (!talk.outcomes[asked.system].some(wanted)) return false;
    } else if (asked.tool && !talk.tools.includes(asked.tool)) return false;
    return words.every((word) => talk.text.includes(word));
  }

  function show(count) {
    const template = document.createElement("template");
    template.innerHTML = chosen.slice(shown, shown + count).map((talk) => talk.html).join("");
    if (shown === 0) {
      list.replaceChildren();
      template.content.querySelector("details")?.setAttribute("open", "");
    }
    list.append(template.content);
    shown = Math.min(shown + count, chosen.length);
    const left = chosen.length - shown;
    more.hidden = left === 0;
    more.textContent = `show ${Math.min(PAGE, left)} more`;
    found.textContent = `${chosen.length} of ${talks.length} dialogues`
      + (left ? `, ${shown} of them shown.` : ".");
  }

  function apply() {
    const asked = Object.fromEntries(new FormData(form));
    const words = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
    chosen = talks.filter((talk) => matches(talk, asked, words));
    if (asked.order) chosen.sort(orders[asked.order]);
    shown = 0;
    show(PAGE);
  }

  function remember() { // so that a link or a reload shows the same dialogues
    const asked = [...new FormData(form)].filter(([name, value]) => value && !(name === "system" && value === "after"));
    history.replaceState(null, "", asked.length ? `#dialogues?${new URLSearchParams(asked)}` : "#dialogues");
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
})();
