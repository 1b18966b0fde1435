"""The agent's output: JSON in few tokens, and a reader for whatever a model wrote instead.

Canonical form: ``[]`` waits; ``[{"READY":"book","date":"Monday"}]`` fires `book`; `PENDING` in place of
`READY` announces it. The status comes first because it is the decision; the parameters lie flat beside it: 17
Qwen2.5 tokens for an action with two parameters, where ``{"name":…,"status":…,"params":{…}}`` takes 23. The
reader also accepts that long form, common aliases, code fences, text around the JSON, a closed thinking block
and a closed state graph before it (`proactor.dialogue.state_graph`), and lists that were cut off. It never
raises: it counts by name what it could not read (`unread`) and what it repaired (`repaired`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proactor.dialogue.dialogue import Action, Status, normalise
from proactor.files import valid_utf8

LONGEST = 50_000
"""Characters read; a longer output is counted as `too_long`."""

STARTS = 32
"""Opening brackets tried before giving up, which keeps `[[[[…` linear."""

_NAMES = ("name", "action", "tool", "function", "method")
_STATUS = ("status", "state")
_PARAMS = ("params", "parameters", "arguments", "args", "slots")
_WRAPPERS = ("actions", "candidates", "tool_calls", "calls")
_BLOCKS = ("think", "graph")
_OPENING = re.compile(r'\[\s*(?:[\[{"\]]|$)|\{\s*(?:["}]|$)')
_GAP = re.compile(r"[\s,]*")
# Numbers stay text: no float rounding, no limit on digits. strict=False: raw line breaks in strings.
_DECODER = json.JSONDecoder(
    parse_int=lambda text: Number(text),
    parse_float=lambda text: Number(text),
    parse_constant=str,
    strict=False,
)


class Number(str):
    """A JSON number as it was written, so that a reader can tell ``5`` from ``"5"``."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Parsed:
    """The actions of an output, and counts of what was not canonical.

    ``actions``: in the order written, duplicates collapsed. ``unread``: entries (or the whole text) that
    could not be read, by reason: empty, no_json, truncated, bad_json, too_deep, too_long, unclosed_think,
    unclosed_graph, not_a_list, not_an_object, no_name, bad_status, bad_params, bad_value. ``repaired``: forms
    that were understood although not canonical: surrounding_text, single_object, wrapper, no_status,
    loose_params, null_value, duplicate.
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
    if not text.startswith("<think>"):
        try:
            if text[:1] in "[{" and _DECODER.raw_decode(text)[1] > len(before):
                return None, text
        except (ValueError, RecursionError):
            pass  # no JSON value: a thought that begins with a bracket
    return before.removeprefix("<think>"), rest.strip()


def split(text: str) -> Pieces:
    """Split an output into its parts. Total. Thinking comes before the graph; both may be absent."""
    thought, rest = split_thought(valid_utf8(text).strip()[:LONGEST])
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
    if len(valid_utf8(text).strip()) > LONGEST:
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
    """The raw entries of the first JSON value in ``body``; the complete ones of a list that is cut off."""
    entries: list[object] = []
    failure = "no_json"
    for start in [m.start() for m in re.finditer(r"[\[{]", body)][:STARTS]:
        try:
            value, end = _DECODER.raw_decode(body, start)
        except RecursionError:
            entries, failure = [], "too_deep"
            break
        except json.JSONDecodeError:
            if not _OPENING.match(body, start):
                continue  # a bracket in prose
            entries, failure = _salvage(body, start)
            if entries or failure == "truncated":
                break
            continue
        if failure != "no_json":
            unread[failure] += 1
        if start > 0 or body[end:].strip():
            repaired["surrounding_text"] += 1
        return _unwrap(value, unread, repaired)
    unread[failure] += 1
    return entries


def _unwrap(value: object, unread: Counter[str], repaired: Counter[str]) -> list[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for name in _WRAPPERS:
            if isinstance(value.get(name), list):
                repaired["wrapper"] += 1
                return list(value[name])
        repaired["single_object"] += 1
        return [value] if value else []
    unread["not_a_list"] += 1
    return []


def _salvage(body: str, start: int) -> tuple[list[object], str]:
    """Complete entries of a broken list, and what is wrong: truncated, bad_json or too_deep."""
    entries: list[object] = []
    position = start
    while body[start] == "[":
        gap = _GAP.match(body, position + (position == start))
        position = gap.end() if gap else position
        if position == len(body):
            return entries, "truncated"
        try:
            value, position = _DECODER.raw_decode(body, position)
        except RecursionError:
            return entries, "too_deep"
        except json.JSONDecodeError:
            break
        entries.append(value)
    return entries, "truncated" if _cut_off(body, position) else "bad_json"


def _cut_off(body: str, start: int) -> bool:
    """Whether decoding from ``start`` fails only because the text ends."""
    try:
        _DECODER.raw_decode(body, start)
    except json.JSONDecodeError as error:
        escape = "escape" in error.msg and error.pos >= len(body) - len("\\u0000")
        return error.pos >= len(body) or error.msg.startswith("Unterminated string") or escape
    except RecursionError:
        return False
    return False


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
    values, missing = _values(params, unread, repaired)
    return Action(name=valid_utf8(name).strip(), params=values, status=status), missing


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
        return name, status, {} if params is None else params
    loose = {k: v for k, v in entry.items() if k not in (name_key, status_key)}
    if loose:
        repaired["loose_params"] += 1
    return name, status, loose


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
            missing.append(valid_utf8(name))
        elif isinstance(value, str):
            read[valid_utf8(name)] = valid_utf8(value).strip()
        else:
            unread["bad_value"] += 1
    return read, tuple(missing)
