// What is open, and how changes reach the file. `state.windows` is what the reviewer has made of the open
// dialogue, `state.view` what the server said of it last. Every change is sent at once, one after the other.
const state = {
  overview: null, order: [], view: null, windows: [], complete: false,
  selected: "", end: "starts", undo: [], dirty: false, saving: null, failed: null,
};

async function ask(path, body) {
  const request = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(path, request);
  } catch {
    throw new Error("the server cannot be reached; is `proactor review` still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.error ?? response.statusText), { conflict: response.status === 409 });
}

const rowOf = (id) => state.overview.dialogues.find((row) => row.id === id);
const selectedWindow = () => state.windows.find((window) => window.id === state.selected);

// Take over what the server says of a dialogue. What was changed since it was asked stays.
function adopt(view) {
  state.view = view;
  const place = state.overview.dialogues.findIndex((row) => row.id === view.id);
  if (place >= 0) state.overview.dialogues[place] = view.row;
  if (!state.dirty) {
    state.windows = view.windows;
    state.complete = view.complete;
  }
  if (!selectedWindow()) state.selected = inOrder(state.windows)[0]?.id ?? "";
  draw();
}

async function open(id, choose = (windows) => (windows.find((w) => !w.status) ?? windows[0])?.id) {
  if (!(await settled())) return false;
  let view;
  try {
    view = await ask(`api/dialogue?id=${encodeURIComponent(id)}`);
  } catch (error) {
    complain(error.message);
    return false;
  }
  const other = state.view?.id !== view.id;
  if (other) {
    state.selected = choose(inOrder(view.windows)) ?? "";
    state.end = "starts";
    notice();
  }
  history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  adopt(view);
  if (other) {
    showSelected(true);
    showRow();
  }
  return true;
}

// Change the open dialogue: `edit` works on copies of its windows.
function change(edit) {
  if (state.failed?.conflict) return;
  const windows = structuredClone(state.windows);
  state.windows = edit(windows) ?? windows;
  state.dirty = true;
  draw();
  save();
}

function save() {
  state.saving ??= send().finally(() => { state.saving = null; draw(); });
  return state.saving;
}

async function send() {
  state.failed = null;
  while (state.dirty) {
    const { view, windows, complete } = state;
    state.dirty = false;
    say("saving…");
    try {
      const sent = windows.map(({ id, name, params, coverage, ready, withdrawn, status }) => (
        { id, name, params, coverage, ready, withdrawn, status }));
      const answer = await ask("api/dialogue", { id: view.id, version: view.version, windows: sent, complete });
      if (answer.version !== view.version) {
        state.undo.push({ id: view.id, version: answer.version, to: view.version });
      }
      adopt(answer);
      say(`saved ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}`);
      notice();
    } catch (error) {
      state.dirty = true;
      state.failed = error;
      say("not saved");
      tellFailure(error);
      return;
    }
  }
}

// Whether all changes are saved, after waiting for those on their way.
async function settled() {
  if (state.dirty || state.saving) await save();
  return !state.failed;
}

function tellFailure(error) {
  const choices = error.conflict
    ? { "Show theirs, drop mine": takeTheirs, "Put mine in its place": keepMine }
    : { "Try again": save, "Drop my change": takeTheirs };
  notice(`Not saved: ${error.message}`, choices);
}

async function takeTheirs() {
  state.dirty = false;
  state.failed = null;
  notice();
  say("");
  await open(state.view.id);
}

async function keepMine() {
  try {
    const theirs = await ask(`api/dialogue?id=${encodeURIComponent(state.view.id)}`);
    state.view = { ...state.view, version: theirs.version };
    await save();
  } catch (error) {
    tellFailure(error);
  }
}

async function undo() {
  if (!(await settled())) return;
  const last = state.undo.pop();
  if (!last) return;
  try {
    const answer = await ask("api/undo", last);
    if (state.view.id === last.id) adopt(answer);
    else await open(last.id);
    showSelected();
    say("undone");
  } catch (error) {
    notice(`Not undone: ${error.message}`, { OK: () => notice() });
  }
  draw();
}

// Look whether the file has changed while the page was away.
async function refresh() {
  if (!state.view || state.dirty || state.saving) return;
  try {
    state.overview = await ask("api/overview");
    const row = rowOf(state.view.id);
    if (row && row.version !== state.view.version && !state.dirty) {
      await open(state.view.id);
      say("changed elsewhere, shown anew");
    }
    draw();
  } catch (error) {
    complain(error.message);
  }
}

function say(words) {
  byId("saved").textContent = words;
}

function complain(words) {
  notice(words, { OK: () => notice() });
}

function notice(words = "", choices = {}) {
  byId("notice").hidden = !words;
  const buttons = Object.entries(choices).map(([name, act]) => el("button", { onclick: act }, name));
  byId("notice").replaceChildren(el("span", {}, words), ...buttons);
}
