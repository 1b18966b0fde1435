"""The agent's output: JSON in few tokens, and a reader for whatever a model wrote instead.

Canonical form: ``[]`` waits; ``[{"READY":"book","date":"Monday"}]`` fires `book`; `PENDING` in place of
`READY` announces it. The status comes first because it is the decision; the parameters lie flat beside it: 17
Qwen2.5 tokens for an action with two parameters, where ``{"name":…,"status":…,"params":{…}}`` takes 23. The
reader also accepts that long form, common aliases, what `json_values` tolerates, objects without a list (one
a line, numbered), a closed thinking block and a closed state graph before the answer
(`proactor.dialogue.state_graph`), and lists that were cut off. It never raises: it counts by name what it
could not read (`unread`) and what it repaired (`repaired`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from proactor.dialogue.dialogue import Action, Status, normalise
from proactor.dialogue.json_values import Found, JsonObject, clean, find_values, read_value

LONGEST = 50_000
"""Characters read; a longer output is counted as `too_long`."""

_NAMES = ("name", "action", "tool", "function", "method")
_STATUS = ("status", "state")
_PARAMS = ("params", "parameters", "arguments", "args", "slots")
_WRAPPERS = ("actions", "candidates", "tool_calls", "calls")
_BLOCKS = ("think", "graph")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The actions of an output, and counts of what was not canonical.

    ``actions``: in the order written, duplicates collapsed. ``unread``: entries (or the whole text) that
    could not be read, by reason: empty, no_json, truncated, bad_json, too_deep, too_long, unclosed_think,
    unclosed_graph, more_values (lists or objects beside the answer), not_an_object, no_name, bad_status,
    bad_params, bad_value, repeated_key. ``repaired``: forms that were understood although not canonical:
    surrounding_text, single_object, objects (without a list around them), wrapper, loose_json, no_status,
    loose_params, ignored_key, null_value, duplicate.
    """

    actions: tuple[Action, ...] = ()
    unread: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether everything was readable."""
        return not self.unread


def render(actions: Iterable[Action]) -> str:
    """The canonical text of actions, duplicates collapsed; `parse` reads the same actions back."""
    return dumps(canonical_entry(a) for a in collapse(actions))


def dumps(entries: Iterable[object]) -> str:
    """A JSON list without spaces, non-ASCII characters unescaped."""
    return json.dumps(list(entries), ensure_ascii=False, separators=(",", ":"))


def canonical_entry(action: Action, missing: Iterable[str] = ()) -> dict[str, object]:
    """The JSON object of an action; parameters named in ``missing`` are null."""
    params: dict[str, object] = {
        **action.params,
        **{name: None for name in missing if name not in action.params},
    }
    if any(_is_status(key) for key in params):  # a parameter named like a status would be read as one
        return {"name": action.name, "status": action.status.value, "params": params}
    return {action.status.value: action.name, **params}


def key(action: Action) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Identity of an action: its name and normalised parameters, status aside."""
    return action.name, tuple(sorted((k, normalise(v)) for k, v in action.params.items()))


def collapse(actions: Iterable[Action]) -> tuple[Action, ...]:
    """Merge duplicates (same `key`) into the first, with the highest status among them [INFERRED, 1.5]."""
    kept: dict[tuple[str, tuple[tuple[str, str], ...]], Action] = {}
    for action in actions:
        first = kept.setdefault(key(action), action)
        if action.status.rank > first.status.rank:
            kept[key(action)] = first.model_copy(update={"status": action.status})
    return tuple(kept.values())


@dataclass(frozen=True, slots=True)
class Pieces:
    """The parts of an output: the content of its leading ``<think>`` and ``<graph>`` blocks (None: no such
    block), the ``answer`` after them, and the name of a block that never ended (then there is no answer).
    """

    think: str | None = None
    graph: str | None = None
    answer: str = ""
    unclosed: str = ""


def split_thought(text: str) -> tuple[str | None, str]:
    """(thought, rest): a leading ``<think>`` block and what follows it. Total.

    Where the chat template opens the block in the prompt (DeepSeek-R1, QwQ, Qwen3-Thinking), an output has
    the closing tag alone: its thought ends at the first ``</think>``, unless that stands inside a JSON value
    with which the output begins. Without a block the thought is None; for one that never closes, the rest
    still begins with ``<think>``.
    """
    text = text.strip()
    before, closed, rest = text.partition("</think>")
    if not closed:
        return None, text
    if text.startswith(("[", "{")):
        value = read_value(text)
        if not value.failure and value.end > len(before):
            return None, text
    return before.removeprefix("<think>"), rest.strip()


def split(text: str) -> Pieces:
    """Split an output into its parts. Total. Thinking comes before the graph; both may be absent."""
    thought, rest = split_thought(clean(text).strip()[:LONGEST])
    blocks: dict[str, str | None] = {"think": thought, "graph": None}
    for name in _BLOCKS:
        if rest.startswith(f"<{name}>") and blocks[name] is None:
            inside, closed, rest = rest.removeprefix(f"<{name}>").partition(f"</{name}>")
            if not closed:
                return Pieces(blocks["think"], blocks["graph"], "", name)
            blocks[name], rest = inside, rest.strip()
    return Pieces(blocks["think"], blocks["graph"], rest)


def parse(text: str) -> Parsed:
    """Read an output. Total: any string gives a `Parsed`, never an exception."""
    written, unread, repaired = entries(text)
    read = [action for entry in written if (action := _read_entry(entry, unread, repaired)[0]) is not None]
    actions = collapse(read)
    if len(actions) < len(read):
        repaired["duplicate"] += len(read) - len(actions)
    return Parsed(actions, dict(unread), dict(repaired))


def entries(text: str) -> tuple[list[object], Counter[str], Counter[str]]:
    """The raw entries of the list in ``text``, with ``unread`` and ``repaired`` of `Parsed`. Total."""
    unread: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    if len(clean(text).strip()) > LONGEST:
        unread["too_long"] += 1
    pieces = split(text)
    if pieces.unclosed:
        unread[f"unclosed_{pieces.unclosed}"] += 1
        return [], unread, repaired
    if not pieces.answer:
        return [], unread or Counter(empty=1), repaired
    return _entries(pieces.answer, unread, repaired), unread, repaired


def parse_graph(text: str) -> tuple[list[tuple[Action, tuple[str, ...]]], dict[str, int]]:
    """A state graph's actions, each with its null or blank parameters, and unread pieces. Total."""
    unread: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    read = [_read_entry(entry, unread, repaired) for entry in _entries(text, unread, repaired)]
    return [(action, missing) for action, missing in read if action is not None], dict(unread)


def _entries(body: str, unread: Counter[str], repaired: Counter[str]) -> list[object]:
    """The raw entries of the answer in ``body``: of its first list, else its objects (one a line, numbered).

    Objects after a broken list are entries of it. Any other value that could be an answer is unread.
    """
    found = find_values(body)
    answers = [f for f in found if f.failure or _could_answer(f.value)] or found[:1]
    if not answers:
        unread["no_json"] += 1
        return []
    for value in answers:
        if value.failure:
            unread[value.failure] += 1
        elif value.loose:
            repaired["loose_json"] += 1
    place = next((i for i, f in enumerate(answers) if _is_list(f)), None)
    if place is None:
        kept = [f for f in answers if isinstance(f.value, dict) and not f.failure]
    else:
        kept = [answers[place]]
        if answers[place].failure:
            kept += takewhile(lambda f: isinstance(f.value, dict) and not _is_list(f), answers[place + 1 :])
    starts = {f.start for f in kept}
    if further := sum(not f.failure and f.start not in starts and f.value != kept[0].value for f in answers):
        unread["more_values"] += further
    if kept and not any(f.failure for f in answers) and _has_text_around(body, kept):
        repaired["surrounding_text"] += 1
    return _unwrap(kept, unread, repaired)


def _could_answer(value: object) -> bool:
    """Whether a value is an answer's rather than the text's, as ``[1]`` is."""
    return (
        isinstance(value, dict) or not value or any(isinstance(item, dict) for item in _listed(value) or ())
    )


def _listed(value: object) -> list[object] | None:
    """The entries of a list, bare or in a wrapper; None for another value."""
    if isinstance(value, dict):
        value = next((value[name] for name in _WRAPPERS if isinstance(value.get(name), list)), None)
    return value if isinstance(value, list) else None


def _is_list(found: Found) -> bool:
    """Whether entries can be read of it: it is a list, and if it is broken some entry is complete."""
    listed = _listed(found.value)
    return listed is not None and (bool(listed) or not found.failure)


def _has_text_around(body: str, kept: Sequence[Found]) -> bool:
    ends, starts = [0, *(f.end for f in kept)], [*(f.start for f in kept), len(body)]
    return any(body[end:start].strip(" \t\r\n,") for end, start in zip(ends, starts, strict=True))


def _unwrap(kept: Sequence[Found], unread: Counter[str], repaired: Counter[str]) -> list[object]:
    """The entries of the values that make up an answer: a list, then objects."""
    entries: list[object] = []
    objects = 0
    for found in kept:
        listed = _listed(found.value)
        if listed is None:
            objects += 1
            entries += [found.value] if found.value else []
        else:
            entries += listed
            if isinstance(found.value, dict):
                repaired["wrapper"] += 1
                if others := sum(bool(found.value.get(name)) for name in _WRAPPERS) - bool(listed):
                    unread["more_values"] += others
                if repeated := _repeated(found.value):
                    unread["repeated_key"] += len(repeated)
    if objects:
        repaired["single_object" if objects == len(kept) == 1 else "objects"] += 1
    return entries


def _read_entry(
    entry: object, unread: Counter[str], repaired: Counter[str]
) -> tuple[Action | None, tuple[str, ...]]:
    """(action or None when it cannot be read, names of its null or blank parameters)."""
    if not isinstance(entry, dict):
        unread["not_an_object"] += 1
        return None, ()
    flat = [k for k, v in entry.items() if _is_status(k) and isinstance(v, str)]
    if len(flat) == 1:
        status: Status | None = Status(flat[0])
        name: object = entry[flat[0]]
        params: object = {k: v for k, v in entry.items() if k != flat[0]}
    else:
        name, status, params = _long_form(entry, repaired)
    if status is None:
        unread["bad_status"] += 1
        return None, ()
    if not isinstance(name, str) or not name.strip():
        unread["no_name"] += 1
        return None, ()
    if not isinstance(params, dict):
        unread["bad_params"] += 1
        return None, ()
    if repeated := _repeated(entry) | _repeated(params):
        unread["repeated_key"] += len(repeated)
    values, missing = _values(params, unread, repaired)
    return Action(name=name.strip(), params=values, status=status), missing


def _long_form(entry: Mapping[str, object], repaired: Counter[str]) -> tuple[object, Status | None, object]:
    """(name, status, params) of ``{"name", "status", "params"}`` or its aliases; status may be None."""
    name_key, status_key, params_key = (
        next((k for k in keys if k in entry), None) for keys in (_NAMES, _STATUS, _PARAMS)
    )
    written = None if status_key is None else entry[status_key]
    status: Status | None = Status.READY
    if written is None:
        repaired["no_status"] += 1
    else:
        status = Status(written) if isinstance(written, str) and _is_status(written) else None
    name = None if name_key is None else entry[name_key]
    if params_key is not None:
        params = entry[params_key]
        if ignored := entry.keys() - {name_key, status_key, params_key}:
            repaired["ignored_key"] += len(ignored)
        return name, status, {} if params is None else params
    loose = {k: v for k, v in entry.items() if k not in (name_key, status_key)}
    if loose:
        repaired["loose_params"] += 1
    return name, status, loose


def _repeated(value: object) -> frozenset[str]:
    return value.repeated if isinstance(value, JsonObject) else frozenset()


def _is_status(value: str) -> bool:
    return Status._missing_(value) is not None


def _values(
    params: Mapping[str, object], unread: Counter[str], repaired: Counter[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Values as text, and the names of the null or blank ones. A list or object is no value."""
    read: dict[str, str] = {}
    missing: list[str] = []
    for name, value in params.items():
        if isinstance(value, bool):
            value = str(value).lower()
        if value is None or (isinstance(value, str) and not value.strip()):
            repaired["null_value"] += 1
            missing.append(name)
        elif isinstance(value, str):
            read[name] = value.strip()
        else:
            unread["bad_value"] += 1
    return read, tuple(missing)
