// The selected window: its decision, tool, values and times, and the list of the dialogue's windows.
function drawInspector() {
  const window = selectedWindow();
  const open = byId("inspector").classList.contains("open");
  const parts = window ? [decision(window, open), details(window)] : [emptyDecision()];
  byId("inspector").replaceChildren(...parts, windowList());
}

function update(id, edit) {
  change((windows) => windows.map((w) => (w.id === id ? touched({ ...w, ...edit(w) }) : w)));
}

function decision(window, open) {
  const letter = letters(state.windows).get(window.id);
  const button = (status, words, key) => el("button", {
    class: `decide ${status}`, "aria-pressed": String(window.status === status), onclick: () => queued(() => decide(status)),
  }, words, " ", el("kbd", {}, key));
  return el("div", { class: "decision" },
    el("div", { class: "what" },
      el("span", { class: `tag ${window.status}` }, letter),
      el("code", {}, el("bdi", {}, window.name)),
      el("button", {
        class: "quiet unfold", "aria-expanded": String(open), "aria-label": "values and times",
        onclick: () => { byId("inspector").classList.toggle("open"); drawInspector(); },
      }, open ? "▾" : "▴")),
    el("small", { class: "in-short" }, el("bdi", {}, Object.values(window.params).join(", "))),
    el("div", { class: "buttons" }, button("accepted", "Accept", "a"), button("rejected", "Reject", "r")),
    window.doubts?.length ? el("ul", { class: "doubts" }, ...window.doubts.map((why) => el("li", {}, why))) : null);
}

function emptyDecision() {
  const words = state.complete ? "No windows, and that is right." : "No windows. Does it call for no action?";
  return el("div", { class: "decision" }, el("p", {}, words),
    el("div", { class: "buttons" }, el("button", {
      class: "decide accepted", "aria-pressed": String(state.complete), onclick: () => queued(() => decide("accepted")),
    }, "Accept ", el("kbd", {}, "a"))));
}

function details(window) {
  return el("div", { class: "details" }, toolField(window), valueFields(window), timeFields(window),
    stateField(window), el("div", { class: "foot" }, whoDecided(window),
      el("button", { class: "quiet danger", onclick: () => removeWindow(window.id) }, "Delete")));
}

function toolField(window) {
  const names = [...new Set([window.name, ...state.view.offered])];
  return field("tool", el("select", {
    id: "tool", onchange: (event) => update(window.id, () => ({ name: event.target.value })),
  }, ...names.map((name) => option(name, name, name === window.name))));
}

function valueFields(window) {
  const tool = state.overview.tools.find((each) => each.name === window.name);
  const known = tool?.parameters ?? [];
  const extra = Object.keys(window.params).filter((name) => !known.some((p) => p.name === name));
  const all = [...known, ...extra.map((name) => ({ name, type: "string", required: false, values: [] }))];
  return el("fieldset", {}, el("legend", {}, "Values"), all.length ? null : el("p", { class: "soft" }, "none"),
    ...all.map((parameter) => valueField(window, parameter)));
}

function valueField(window, parameter) {
  const value = window.params[parameter.name] ?? "";
  const set = (event) => update(window.id, (w) => {
    const params = { ...w.params, [parameter.name]: event.target.value };
    if (!event.target.value) delete params[parameter.name];
    return { params };
  });
  const id = `value-${parameter.name}`;
  const input = parameter.type === "enum"
    ? el("select", { id, class: "value", onchange: set },
      ...[...new Set(["", value, ...parameter.values])].map((each) => option(each, each || "–", each === value)))
    : el("input", { id, class: "value", value, onchange: set, autocomplete: "off", spellcheck: "false" });
  const turn = window.value_turns?.[parameter.name];
  const hint = !value ? (parameter.required ? "missing" : "optional") : turn ? `said at turn ${turn}` : "not said word for word";
  return field(parameter.name, input, hint);
}

function field(name, input, hint) {
  return el("div", { class: "field" }, el("label", { for: input.id }, el("bdi", {}, name)), input,
    hint ? el("small", {}, hint) : null);
}

function timeFields(window) {
  const turns = state.view.turns.map((turn) => turn.index);
  const pick = (end) => {
    const at = endTurn(window, end);
    const choices = users().includes(at) || at === undefined ? users() : [...users(), at].sort((a, b) => a - b);
    return el("select", {
      id: `end-${end}`, "aria-label": END_WORDS[end],
      onchange: (event) => update(window.id, (w) => withEnd(w, end, Number(event.target.value))),
    }, ...choices.map((turn) => option(turn, String(turn), turn === at)));
  };
  const line = (words, first, last) => el("div", { class: "times" }, el("span", {}, words), pick(first), "to", pick(last));
  if (!window.coverage) {
    const at = window.observed_trigger || userTurn(turns.at(-1));
    return el("button", {
      onclick: () => update(window.id, () => ({ coverage: [at, at], ready: [at, at] })),
    }, `Place it at turn ${at}`);
  }
  const unknown = el("input", {
    type: "checkbox", id: "unknown", onchange: (event) => update(window.id, (w) => (
      { ready: event.target.checked ? null : [...w.coverage] })),
  });
  unknown.checked = !window.ready;
  return el("fieldset", {}, el("legend", {}, "Turns"), line("under way", "opens", "closes"),
    window.ready ? line("may fire", "starts", "ends") : null,
    window.withdrawn ? null : el("label", { class: "check" }, unknown, "when it may fire is unknown"));
}

function stateField(window) {
  const box = el("input", {
    type: "checkbox", id: "withdrawn", onchange: (event) => update(window.id, (w) => (
      { withdrawn: event.target.checked, ready: event.target.checked ? null : w.coverage && [...w.coverage] })),
  });
  box.checked = window.withdrawn;
  return el("label", { class: "check" }, box, "taken back by the user, nothing to do");
}

function whoDecided(window) {
  if (!window.review) return el("small", {}, "not reviewed");
  const { status, by, at } = window.review;
  const when = new Date(at);
  const words = isNaN(when) ? at : when.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return el("small", {}, `${status} by `, el("bdi", {}, by), `, ${words}`);
}

function windowList() {
  const letter = letters(state.windows);
  const line = (window) => el("li", {}, el("button", {
    class: "quiet", "aria-current": window.id === state.selected ? "true" : null, onclick: () => select(window.id),
  }, el("span", { class: `tag ${window.status} ${window.withdrawn ? "withdrawn" : window.ready ? "" : "unknown"}` },
    letter.get(window.id)),
  el("code", {}, el("bdi", {}, window.name), "(", el("bdi", {}, Object.values(window.params).join(", ")), ")"),
  el("span", { class: "status", "aria-label": window.status || "open" },
    { accepted: "✓", rejected: "✕" }[window.status] ?? (window.doubts?.length ? "?" : ""))));
  return el("div", { class: "window-list" },
    el("ul", {}, ...inOrder(state.windows).map(line)),
    el("button", { class: "quiet", onclick: () => addWindow() }, "Add a window ", el("kbd", {}, "n")),
    besideList());
}

// The windows of the other file, each to be taken over: its turns by a window of its tool, else as a new one.
function besideList() {
  if (!state.view.beside.length) return null;
  const line = (other) => el("li", {}, el("code", {}, el("bdi", {}, other.name)),
    el("small", {}, `under way ${spanWords(other.coverage)}, may fire ${spanWords(other.ready)}`),
    el("button", { onclick: () => takeBeside(other) }, "Use"));
  return el("div", { class: "beside" }, el("p", { class: "soft" }, "Beside, in blue:"),
    el("ul", {}, ...inOrder(state.view.beside).map(line)));
}

function takeBeside({ name, params, coverage, ready }) {
  const chosen = selectedWindow();
  const target = chosen?.name === name ? chosen : state.windows.find((window) => window.name === name);
  if (!target) return addWindow(undefined, { name, params, coverage, ready });
  state.selected = target.id;
  return update(target.id, () => ({ coverage, ready }));
}
