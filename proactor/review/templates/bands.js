// Windows as intervals of turns: their ends, lanes and letters.
const ENDS = ["opens", "starts", "ends", "closes"];
const END_WORDS = {
  opens: "under way from", starts: "may fire from", ends: "may fire until", closes: "under way until",
};

const users = () => state.view.turns.filter((turn) => turn.speaker === "user").map((turn) => turn.index);
const endsOf = (window) => (!window?.coverage ? [] : window.ready ? ENDS : ["opens", "closes"]);

function endTurn(window, end) {
  return { opens: window.coverage?.[0], starts: window.ready?.[0], ends: window.ready?.[1],
    closes: window.coverage?.[1] }[end];
}

// A window with an end at `turn`. The coverage holds the ready window: moving one moves the other where it must.
function withEnd(window, end, turn) {
  let [opens, closes] = window.coverage ?? [turn, turn];
  let ready = window.ready && [...window.ready];
  if (end === "opens") opens = Math.min(turn, closes);
  if (end === "closes") closes = Math.max(turn, opens);
  if (ready && (end === "opens" || end === "closes")) {
    ready = ready.map((at) => Math.min(Math.max(at, opens), closes));
  }
  if (ready && end === "starts") ready = [turn, Math.max(turn, ready[1])];
  if (ready && end === "ends") ready = [Math.min(turn, ready[0]), turn];
  if (ready) {
    opens = Math.min(opens, ready[0]);
    closes = Math.max(closes, ready[1]);
  }
  return { ...window, coverage: [opens, closes], ready };
}

// What a change by a person makes of the decision: a rejected window is open again, an accepted one stays so.
function touched(window) {
  return { ...window, status: window.status === "rejected" ? "" : window.status };
}

// In the order of their letters: by coverage, those without one last.
function inOrder(windows) {
  const key = ({ coverage }) => coverage ?? [Infinity, Infinity];
  return [...windows].sort((a, b) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1] || (a.id < b.id ? -1 : 1));
}

function letters(windows) {
  const names = inOrder(windows).map((window, i) => (
    [window.id, String.fromCharCode(65 + (i % 26)).repeat(Math.floor(i / 26) + 1)]));
  return new Map(names);
}

// The lane of each window that has a place: the first one that is free.
function lanes(windows) {
  const ends = [];
  const lane = new Map();
  for (const window of inOrder(windows).filter((w) => w.coverage)) {
    let free = ends.findIndex((last) => last < window.coverage[0]);
    if (free < 0) free = ends.length;
    ends[free] = window.coverage[1];
    lane.set(window.id, free);
  }
  return { lane, count: ends.length };
}

// The user turn nearest to `turn`, strictly on one side of it with `step` 1 or -1; undefined where there is none.
function userTurn(turn, step = 0) {
  const found = users().filter((at) => step === 0 || (at - turn) * step > 0);
  return found.sort((a, b) => Math.abs(a - turn) - Math.abs(b - turn))[0];
}
