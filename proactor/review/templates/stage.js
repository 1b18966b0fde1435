// The open dialogue: turns from top to bottom, windows as bands beside them.
function drawStage() {
  const { view, windows } = state;
  const { lane, count: laneCount } = lanes(windows);
  const letter = letters(windows);
  const beside = lanes(view.beside);
  const chosen = selectedWindow();
  const grid = el("div", { class: "turns" });
  grid.style.gridTemplateColumns = [
    "var(--number)", laneCount ? `repeat(${laneCount}, var(--lane))` : "",
    beside.count ? `repeat(${beside.count}, var(--outline))` : "", "minmax(0, 1fr)",
  ].filter(Boolean).join(" ");
  for (const turn of view.turns) grid.append(numberCell(turn), textCell(turn, letter, chosen));
  for (const window of windows.filter((w) => w.coverage)) {
    grid.append(...band(window, lane.get(window.id) + 2, letter.get(window.id)));
  }
  for (const window of view.beside.filter((w) => w.coverage)) {
    grid.append(...outline(window, laneCount + beside.lane.get(window.id) + 2));
  }
  byId("stage").replaceChildren(stageHead(), grid, ...notes(windows, letter));
}

function stageHead() {
  const { view } = state;
  const place = state.order.indexOf(view.id);
  const step = (by, words, key) => el("button", {
    class: "quiet", title: `${words} (${key})`, "aria-label": words,
    disabled: place + by < 0 || place + by >= state.order.length, onclick: () => queued(() => nextDialogue(by)),
  }, by < 0 ? "‹" : "›");
  return el("div", { class: "stage-head" },
    step(-1, "previous dialogue", "K"),
    el("h2", {}, el("bdi", {}, view.id), view.domain ? el("small", {}, ` ${view.domain}`) : null),
    view.row.reviewed ? el("span", { class: "badge accepted" }, "reviewed") : null,
    step(1, "next dialogue", "J"));
}

function numberCell(turn) {
  const add = turn.speaker === "user" ? el("button", {
    class: "add", title: "add a window here", "aria-label": `add a window at turn ${turn.index}`,
    onclick: () => addWindow(turn.index),
  }, "+") : null;
  return el("div", { class: "number", rows: turn.index, column: "1" }, el("span", {}, String(turn.index)), add);
}

function textCell(turn, letter, chosen) {
  const spellings = chosen
    ? [...Object.values(chosen.params), ...Object.values(chosen.variants ?? {}).flat()] : [];
  const acted = state.windows.filter((w) => w.observed_trigger === turn.index);
  return el("div", { class: `turn ${turn.speaker}`, "data-turn": turn.index, rows: turn.index, column: "-2 / -1" },
    el("span", { class: "who" }, turn.speaker),
    el("bdi", { class: "words", dir: "auto" }, ...marked(turn.text, spellings)),
    acted.length ? el("small", { class: "acted", title: "the action log: the last turn seen before it ran" },
      `logged: ${acted.map((w) => letter.get(w.id)).join(", ")}`) : null);
}

function band(window, column, letter) {
  const chosen = window.id === state.selected;
  const kind = window.withdrawn ? "withdrawn" : window.ready ? "known" : "unknown";
  const classes = `${kind} ${window.status} ${chosen ? "chosen" : ""}`;
  const grip = (end) => chosen && endTurn(window, end) ? el("span", {
    class: `grip ${end} ${state.end === end ? "active" : ""}`, title: END_WORDS[end], "data-end": end,
    onpointerdown: (event) => startDrag(event, window.id, end),
  }) : null;
  const cover = el("div", {
    class: `band ${classes}`, "data-id": window.id, column, role: "button",
    "aria-label": `${letter}: ${window.name}, ${spanWords(window.ready)}`, "aria-pressed": String(chosen),
    onclick: () => select(window.id),
  }, el("b", { class: "letter" }, letter), grip("opens"), grip("closes"));
  const ready = el("div", { class: `ready ${classes}`, "data-id": window.id, column }, grip("starts"), grip("ends"));
  placeIn(cover, ready, window);
  return [cover, ready];
}

function placeIn(cover, ready, window) {
  cover.style.gridRow = `${window.coverage[0]} / ${window.coverage[1] + 1}`;
  ready.hidden = !window.ready;
  if (window.ready) ready.style.gridRow = `${window.ready[0]} / ${window.ready[1] + 1}`;
}

// Move the drawn band of a window, while it is dragged.
function placeBand(window) {
  const [cover, ready] = byId("stage").querySelectorAll(`[data-id="${CSS.escape(window.id)}"]`);
  placeIn(cover, ready, window);
}

function outline(window, column) {
  const words = `beside: ${window.name}, may fire ${spanWords(window.ready)}`;
  const made = (kind, [first, last]) => el("div", {
    class: `outline ${kind}`, title: words, column, rows: `${first} / ${last + 1}`,
  });
  return [made("cover", window.coverage), ...(window.ready ? [made("ready", window.ready)] : [])];
}

// What has no place among the turns: windows without one, doubts about the dialogue, what was taken out.
function notes(windows, letter) {
  const { view } = state;
  const lines = [
    ...windows.filter((w) => !w.coverage).map((w) => `${letter.get(w.id)}: ${w.name} has no place yet`),
    ...view.doubts,
    ...(view.removed.length ? [`${count(view.removed.length, "window")} deleted`] : []),
  ];
  return lines.length ? [el("ul", { class: "notes soft" }, ...lines.map((line) => el("li", {}, line)))] : [];
}

function select(id, end) {
  const other = id !== state.selected;
  state.selected = id;
  const possible = endsOf(selectedWindow());
  if (end) state.end = end;
  else if (other || !possible.includes(state.end)) state.end = possible.includes("starts") ? "starts" : possible[0];
  draw();
}

function showSelected(fromTop = false) {
  if (fromTop) byId("stage").scrollTop = 0;
  const drawn = byId("stage").querySelector(".band.chosen");
  drawn?.scrollIntoView({ block: "nearest" });
}
