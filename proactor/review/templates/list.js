// The list of dialogues: filter, order, progress. Its order stands until another is asked for, so that a
// dialogue does not vanish under the reviewer's hands.
const PAGE = 200;
let shownRows = PAGE;

const SHOWN = {
  todo: (row) => !row.reviewed, all: () => true, done: (row) => row.reviewed,
  doubts: (row) => row.doubts > 0, rejected: (row) => row.rejected > 0,
};
const ORDERS = {
  file: () => 0,
  doubts: (a, b) => b.doubts - a.doubts,
  overlap: (a, b) => (a.overlap ?? 1) - (b.overlap ?? 1),
};

async function filterList() {
  const asked = Object.fromEntries(new FormData(byId("filters")));
  let rows = state.overview.dialogues.filter(SHOWN[asked.show]);
  if (asked.words.trim()) {
    try {
      const found = new Set(await ask(`api/search?words=${encodeURIComponent(asked.words)}`));
      rows = rows.filter((row) => found.has(row.id));
    } catch (error) {
      complain(error.message);
    }
  }
  state.order = rows.sort(ORDERS[asked.order]).map((row) => row.id);
  shownRows = PAGE;
}

function drawList() {
  const rows = new Map(state.overview.dialogues.map((row) => [row.id, row]));
  const order = state.order.filter((id) => rows.has(id));
  byId("rows").replaceChildren(...order.slice(0, shownRows).map((id) => listRow(rows.get(id))));
  const left = order.length - shownRows;
  byId("more").hidden = left <= 0;
  byId("more").textContent = `show ${Math.min(left, PAGE)} more`;
  byId("found").textContent = order.length ? count(order.length, "dialogue") : "Nothing here.";
  drawProgress();
}

// Bring the open dialogue's row into sight.
function showRow() {
  const place = state.order.indexOf(state.view.id);
  if (place >= shownRows) {
    shownRows = place + PAGE;
    drawList();
  }
  byId("rows").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
}

function listRow(row) {
  const current = row.id === state.view?.id;
  const decided = row.windows ? `${row.decided}/${row.windows}` : "–";
  const words = row.windows ? `${row.decided} of ${count(row.windows, "window")} decided` : "no windows";
  return el("li", {}, el("button", {
    class: "quiet row", "aria-current": current ? "true" : null, onclick: () => queued(async () => {
      if (await open(row.id)) closeList();
    }),
  },
  el("span", { class: "name" }, el("bdi", {}, row.id)),
  row.overlap === null ? null : el("small", { title: "agreement with the windows beside" }, row.overlap.toFixed(2)),
  el("small", { title: words, "aria-label": words }, decided),
  el("span", { class: `mark ${row.reviewed ? "done" : row.doubts ? "doubtful" : ""}`,
    title: row.reviewed ? "reviewed" : row.doubts ? count(row.doubts, "doubt") : "" },
  row.reviewed ? "✓" : row.doubts ? "?" : "")));
}

function drawProgress() {
  const all = state.overview.dialogues;
  const done = all.filter((row) => row.reviewed).length;
  byId("progress-words").textContent = `${done} of ${all.length} reviewed`;
  byId("progress").querySelector("i").style.width = `${(100 * done) / all.length}%`;
}

function closeList() {
  document.body.classList.remove("list-open");
  byId("list-toggle").setAttribute("aria-expanded", "false");
}
