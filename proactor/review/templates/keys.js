// What a reviewer does: step, decide, add, delete, move ends; by keys and by buttons. And the start.
let tail = Promise.resolve();

// Actions run one after the other: a key pressed while a dialogue is loading is meant for that dialogue.
function queued(action) {
  tail = tail.then(action).catch((error) => complain(error.message));
  return tail;
}

function draw() {
  if (!state.view) return;
  const focused = document.activeElement?.id;
  drawStage();
  if (!document.activeElement.matches("#inspector input.value")) drawInspector(); // else after typing: `focusout`
  drawList();
  byId("undo").disabled = !state.undo.length;
  if (focused && document.activeElement === document.body) byId(focused)?.focus({ preventScroll: true });
}

async function nextWindow(step) {
  const listed = inOrder(state.windows);
  const at = listed.findIndex((window) => window.id === state.selected);
  const next = listed[at + step];
  if (next) {
    select(next.id);
    showSelected();
  } else await nextDialogue(step, (windows) => (step > 0 ? windows[0] : windows.at(-1))?.id);
}

async function nextDialogue(step, choose) {
  const next = state.order[state.order.indexOf(state.view.id) + step];
  if (next !== undefined) await open(next, choose);
}

async function decide(status) {
  const window = selectedWindow();
  if (!window) {
    if (status !== "accepted" || state.windows.length) return;
    state.complete = true;
    change((windows) => windows);
  } else change((windows) => windows.map((w) => (w.id === window.id ? { ...w, status } : w)));
  if (!(await settled())) return;
  const listed = inOrder(state.windows);
  const at = listed.findIndex((w) => w.id === window?.id);
  const left = [...listed.slice(at + 1), ...listed.slice(0, at + 1)].find((w) => !w.status);
  if (left) {
    select(left.id);
    showSelected();
    return;
  }
  const place = state.order.indexOf(state.view.id);
  const rows = new Map(state.overview.dialogues.map((row) => [row.id, row]));
  const next = [...state.order.slice(place + 1), ...state.order.slice(0, place + 1)].find(
    (id) => rows.has(id) && !rows.get(id).reviewed);
  if (next !== undefined) await open(next);
  else say("this list is reviewed");
}

function addWindow(turn = middleTurn(), made = {}) {
  const taken = new Set([...state.windows.map((w) => w.id), ...state.view.removed]);
  let number = 1;
  while (taken.has(`added-${number}`)) number += 1;
  const id = `added-${number}`;
  const name = made.name ?? state.view.offered[0] ?? selectedWindow()?.name;
  if (turn === undefined || name === undefined) return;
  state.selected = id;
  state.end = "starts";
  byId("inspector").classList.add("open");
  change((windows) => [...windows, {
    id, name, params: {}, coverage: [turn, turn], ready: [turn, turn], withdrawn: false, status: "accepted",
    ...made,
  }]);
  showSelected();
}

// The user turn nearest to the middle of what is seen.
function middleTurn() {
  const { top, bottom } = byId("stage").getBoundingClientRect();
  return turnAt((top + bottom) / 2);
}

function removeWindow(id) {
  const listed = inOrder(state.windows);
  const at = listed.findIndex((window) => window.id === id);
  state.selected = (listed[at + 1] ?? listed[at - 1])?.id ?? "";
  change((windows) => windows.filter((window) => window.id !== id));
}

function chooseEnd(step) {
  const possible = endsOf(selectedWindow());
  if (!possible.length) return;
  const at = possible.indexOf(state.end);
  select(state.selected, possible[Math.min(Math.max(at + step, 0), possible.length - 1)]);
}

function moveEnd(step) {
  const window = selectedWindow();
  if (!endsOf(window).includes(state.end)) return;
  const turn = userTurn(endTurn(window, state.end), step);
  if (turn === undefined) return;
  const moved = withEnd(window, state.end, turn);
  if (endTurn(moved, state.end) !== endTurn(window, state.end)) update(window.id, () => moved);
  byId("stage").querySelector(".grip.active")?.scrollIntoView({ block: "nearest" });
}

const KEYS = {
  j: () => nextWindow(1), k: () => nextWindow(-1), J: () => nextDialogue(1), K: () => nextDialogue(-1),
  a: () => decide("accepted"), r: () => decide("rejected"), u: undo, n: () => addWindow(),
  ArrowUp: () => moveEnd(-1), ArrowDown: () => moveEnd(1), ArrowLeft: () => chooseEnd(-1), ArrowRight: () => chooseEnd(1),
  Delete: () => state.selected && removeWindow(state.selected),
  Backspace: () => state.selected && removeWindow(state.selected),
  e: editValues,
  "/": () => { openList(); byId("filters").elements.words.focus(); },
  "?": () => byId("help").showModal(),
  Escape: closeList,
};

function editValues() {
  byId("inspector").classList.add("open");
  drawInspector();
  const first = byId("inspector").querySelector(".value");
  first?.focus();
  first?.select?.();
}

function openList() {
  document.body.classList.add("list-open");
  byId("list-toggle").setAttribute("aria-expanded", "true");
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape" || (event.key === "Enter" && event.target.matches("input"))) event.target.blur();
    return;
  }
  const action = KEYS[event.key];
  if (!action || !state.view) return;
  event.preventDefault();
  queued(action);
}

async function start() {
  state.overview = await ask("api/overview");
  const { file, folder, compared } = state.overview;
  byId("file").textContent = folder ? `${folder}/${file}` : file;
  document.title = `Review: ${byId("file").textContent}`;
  byId("filters").elements.order.querySelector("[value=overlap]").hidden = !compared;
  byId("filters").elements.order.value = compared ? "overlap" : "file";
  if (state.overview.dialogues.every((row) => row.reviewed)) byId("filters").elements.show.value = "all";
  await filterList();
  const wanted = decodeURIComponent(location.hash.slice(1));
  if (!(rowOf(wanted) && (await open(wanted)))) await open(state.order[0] ?? state.overview.dialogues[0].id);
}

addEventListener("keydown", pressed);
addEventListener("beforeunload", (event) => { if (state.dirty || state.saving) event.preventDefault(); });
addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") queued(refresh); });
addEventListener("focus", () => queued(refresh));
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("input", () => queued(async () => { await filterList(); drawList(); }));
byId("inspector").addEventListener("focusout", (event) => {
  if (event.target.matches("input.value")) setTimeout(draw); // `draw` left the inspector alone meanwhile
});
byId("more").addEventListener("click", () => { shownRows += PAGE; drawList(); });
byId("undo").addEventListener("click", () => queued(undo));
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("list-toggle").addEventListener("click", () => (
  document.body.classList.contains("list-open") ? closeList() : openList()));
byId("desk").addEventListener("click", (event) => { if (event.target === byId("desk")) closeList(); });
queued(start);
