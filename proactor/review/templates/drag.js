// Ends of a window dragged by mouse or finger. They snap to user turns; Escape puts them back.
const EDGE = 56; // px from the border of the stage within which it scrolls

function startDrag(event, id, end) {
  if (event.button > 0) return;
  event.preventDefault();
  event.stopPropagation();
  const stage = byId("stage");
  const before = state.windows.find((window) => window.id === id);
  let now = before;
  let y = event.clientY;
  let frame = requestAnimationFrame(scroll);
  select(id, end);
  document.body.classList.add("dragging");

  function scroll() {
    const { top, bottom } = stage.getBoundingClientRect();
    const speed = y < top + EDGE ? (y - top - EDGE) / 5 : y > bottom - EDGE ? (y - bottom + EDGE) / 5 : 0;
    if (speed) {
      stage.scrollBy(0, speed);
      follow();
    }
    frame = requestAnimationFrame(scroll);
  }

  function follow() {
    const turn = turnAt(y);
    if (turn === undefined || turn === endTurn(now, end)) return;
    now = withEnd(before, end, turn);
    placeBand(now);
  }

  function move(moved) {
    if (moved.pointerId !== event.pointerId) return;
    moved.preventDefault();
    y = moved.clientY;
    follow();
  }

  function stop(keep) {
    cancelAnimationFrame(frame);
    document.body.classList.remove("dragging");
    listeners.abort();
    if (keep && now !== before) change((windows) => windows.map((w) => (w.id === id ? touched(now) : w)));
    else draw();
  }

  const listeners = new AbortController();
  const { signal } = listeners;
  addEventListener("pointermove", move, { signal, passive: false });
  addEventListener("pointerup", (ended) => ended.pointerId === event.pointerId && stop(true), { signal });
  addEventListener("pointercancel", (ended) => ended.pointerId === event.pointerId && stop(false), { signal });
  addEventListener("keydown", (pressed) => {
    if (pressed.key !== "Escape") return;
    pressed.stopImmediatePropagation();
    stop(false);
  }, { signal, capture: true });
}

// The user turn whose row is nearest to a height on the screen.
function turnAt(y) {
  const rows = [...byId("stage").querySelectorAll(".turn.user")].map((row) => {
    const { top, bottom } = row.getBoundingClientRect();
    return [Math.max(top - y, y - bottom, 0), Number(row.dataset.turn)];
  });
  return rows.sort((a, b) => a[0] - b[0])[0]?.[1];
}
