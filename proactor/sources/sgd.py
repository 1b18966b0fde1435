"""Schema-Guided Dialogue: the raw release (dialogues_*.json, schema.json) or compact JSONL of it.

Both are brought to the same frames, from which the windows are derived:

- A service call on a system turn is a reference. It was triggered after the user turn before it, which is
  `latest`, the end of the ready window [DERIVED from the corpus].
- A value arrives at the user turn since which the dialogue state holds it as the call has it [DERIVED]. The
  window opens with the last value: of all parameters (``params="all"``), because the whole call is scored, or
  of the required ones (``params="required"``) [INFERRED].
- A transactional intent needs assent: its window opens no earlier than the last AFFIRM that answers the last
  CONFIRM before the call; without one the window is null (``no_assent``) [INFERRED; the data's own windows
  include the CONFIRM and may include a NEGATE].
- Coverage runs from the turn at which the intent became active to the last ready turn [INFERRED].
- A later call of the same intent begins after the one before it [INFERRED].
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from proactor.catalogs.sgd import read_schema, tools
from proactor.dialogue import Dialogue, Reference, Turn, windows
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, find_files, read_json
from proactor.sources import base, records, sgd_records
from proactor.sources.base import Malformed, Record, Subset
from proactor.sources.corpus import SPLITS, Corpus


class SgdOptions(BaseModel):
    """How SGD is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["all", "train", "dev", "test"] = Field(default="all", description="part of the release")
    params: Literal["all", "required"] = Field(default="all", description="values the ready window waits for")
    values: Literal["spoken", "canonical"] = Field(
        default="spoken", description="spelling of parameter values; the other one counts as a variant"
    )


OPTIONS = SgdOptions


def load(path: Path, subset: Subset, options: SgdOptions) -> Corpus:
    """Reads a folder or file of either format; see `sources.load`."""
    raw = "dialogues_*.json"
    files = find_files(path, "*.jsonl.gz", "*.jsonl", raw, f"*/{raw}", f"*{raw}.gz")
    files = [f for f in files if options.part == "all" or options.part in _part(f)]
    if not files:
        raise SourceError(f"{path}: nothing of part {options.part!r}")
    schema = read_schema(path if path.is_dir() else path.parent)
    counters: Counter[str] = Counter()
    reader = _Reader(schema, options)
    if any(".jsonl" in file.name for file in files):
        return base.convert_all(subset.choose_lines(files), reader.dialogue, reader.catalog(), counters)
    return base.convert_all(_release(files, subset), reader.dialogue, reader.catalog(), counters)


def _part(file: Path) -> str:
    named = [part for part in SPLITS if part in file.name]
    return named[0] if named else file.parent.name


def _release(files: list[Path], subset: Subset) -> Iterator[Record]:
    """The release's dialogues, file by file; with a limit, in a seeded order, to parse few files."""
    if subset.limit is not None:
        files = random.Random(f"{subset.seed}/files").sample(files, len(files))
    taken = 0
    for file in files:
        if taken == subset.limit:
            return
        dialogues = read_json(file)
        if not isinstance(dialogues, list):
            raise SourceError(f"{file}:1: not a list of dialogues")
        for position, record in enumerate(dialogues, start=1):
            where = f"{file}:dialogue {position}"
            name = record.get("dialogue_id") if isinstance(record, dict) else None
            if not isinstance(name, str) or not name:
                raise SourceError(f"{where}: no dialogue_id")
            record["dialogue_id"] = f"sgd/{_part(file)}/{name}"
            if taken == subset.limit or not subset.includes(record["dialogue_id"]):
                continue
            taken += 1
            yield Record(where, record["dialogue_id"], record)


def _compact_frames(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """The frames of a turn of the release in the compact form."""
    frames: list[dict[str, Any]] = []
    for raw in turn["frames"]:
        frame: dict[str, Any] = {
            "service": raw["service"],
            "acts": [[a["act"], a["slot"], a.get("canonical_values") or a["values"]] for a in raw["actions"]],
        }
        if "state" in raw:
            frame |= {"intent": raw["state"]["active_intent"], "slots": raw["state"]["slot_values"]}
        if "service_call" in raw:
            frame["call"] = raw["service_call"]
        frames.append(frame)
    return frames


class _Reader:
    """Builds dialogues and the catalog of one corpus."""

    def __init__(self, schema: dict[str, dict[str, Any]], options: SgdOptions) -> None:
        self.schema = schema
        self.options = options
        self.intents = {(s, i["name"]): i for s, service in schema.items() for i in service["intents"]}

    def catalog(self) -> Catalog:
        """The tools of all services."""
        return Catalog(tools=tuple(tools(self.schema)))

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of either format."""
        records.check(records.Spoken, record)
        released = any("utterance" in turn for turn in record["turns"])
        records.check(sgd_records.SgdRelease if released else sgd_records.SgdCompact, record)
        turns = tuple(
            Turn(
                index=i,
                speaker="user" if t["speaker"] == "USER" else "agent",
                text=base.turn_text(t["utterance" if released else "text"]),
            )
            for i, t in enumerate(record["turns"], start=1)
        )
        frames = [_compact_frames(turn) if released else turn["frames"] for turn in record["turns"]]
        references: list[Reference] = []
        earlier: dict[tuple[str, str], int] = {}
        for position, listed in enumerate(frames, start=1):
            for frame in listed:
                if "call" in frame:
                    key = (frame["service"], frame["call"]["method"])
                    call = _Call(
                        turns, frames, key, frame["call"]["parameters"], position, earlier.get(key, 0)
                    )
                    references.append(self._reference(call, f"a{len(references) + 1}", counters))
                    earlier[key] = position
        services = record["services"]
        return Dialogue(
            id=record["dialogue_id"],
            turns=turns,
            references=tuple(references),
            tools=tuple(f"{s}.{i['name']}" for s in services for i in self.schema[s]["intents"]),
            domain="+".join(sorted({s.rsplit("_", 1)[0] for s in services})),
            source="sgd",
        )

    def _reference(self, call: _Call, name: str, counters: Counter[str]) -> Reference:
        intent = self.intents[call.key]
        arrived, spellings = call.values()
        params, variants = self._spell(call, spellings, counters)
        counters["missing_required"] += bool(set(intent["required_slots"]) - params.keys())
        mentioned, _ = windows.mentions(call.turns[: call.latest], params, variants)
        value_turns = {
            p: min(t for t in (mentioned.get(p), arrived.get(p)) if t)
            for p in params
            if p in mentioned | arrived
        }
        build = partial(
            Reference,
            id=name,
            name=".".join(call.key),
            params=params,
            observed_trigger=call.latest,
            value_turns=value_turns,
            variants=variants,
        )
        begin = call.intent_turn()
        if begin is None or not set(params) <= value_turns.keys():
            return build(null_reason="untraced")
        wanted = params if self.options.params == "all" else intent["required_slots"]
        start = max([begin, *(arrived[p] for p in wanted if p in arrived)])
        if intent["is_transactional"]:
            assent = call.assent()
            if assent is None:
                return build(null_reason="no_assent", coverage=(begin, call.latest))
            counters["opened_by_assent"] += assent > start
            start = max(start, assent)
        counters["repeat_call"] += bool(call.after)
        return build(
            coverage=(begin, call.latest),
            ready=(start, call.latest),
            values_seen=max(value_turns.values(), default=begin),
        )

    def _spell(
        self, call: _Call, spellings: dict[str, tuple[str, ...]], counters: Counter[str]
    ) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
        """The spelling that a reference uses (the first one said literally, if any), and the others."""
        params: dict[str, str] = {}
        variants: dict[str, tuple[str, ...]] = {}
        for name, canonical in call.params.items():
            known = tuple(dict.fromkeys((canonical, *spellings.get(name, ()))))
            mentions = [
                (t, v) for v in known if (t := windows.first_mention(call.turns[: call.latest], (v,)))
            ]
            counters["values"] += 1
            counters["values_not_literal"] += not mentions
            params[name] = min(mentions)[1] if mentions and self.options.values == "spoken" else canonical
            if others := tuple(v for v in known if v != params[name]):
                variants[name] = others
        return params, variants


class _Call:
    """A service call and the frames of its service before it; turns are 1-based."""

    def __init__(
        self,
        turns: tuple[Turn, ...],
        frames: list[list[dict[str, Any]]],
        key: tuple[str, str],
        params: dict[str, Any],
        turn: int,
        after: int,
    ) -> None:
        latest = base.last_user_turn(turns, turn - 1)
        if latest is None:
            raise Malformed(f"turn {turn}: a call before the user spoke")
        self.turns, self.key, self.after, self.latest = turns, key, after, latest
        self.params = {name: str(value) for name, value in params.items()}
        service = key[0]
        self.seen = [(u, f) for u in range(1, turn) for f in frames[u - 1] if f["service"] == service]
        self.states = [(u, f) for u, f in self.seen if "slots" in f]

    def intent_turn(self) -> int | None:
        """The user turn since which the intent has been active, or the first after an earlier call of it."""
        begin = None
        for turn, frame in reversed(self.states):
            if frame["intent"] != self.key[1]:
                break
            begin = turn
        if begin is None or begin > self.after:
            return begin
        return next((u for u, _ in self.states if u > self.after), None)

    def values(self) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
        """Per parameter: the turn since which the state holds the call's value, and its spellings there."""
        arrived: dict[str, int] = {}
        spellings: dict[str, tuple[str, ...]] = {}
        final = self.states[-1][1]["slots"] if self.states else {}
        for name, value in self.params.items():
            spellings[name] = tuple(final.get(name, ()))
            target, held = _plain(value), set(map(_plain, spellings[name]))
            wanted = {target} if target in held else held
            for turn, frame in reversed(self.states):
                if wanted.isdisjoint(map(_plain, frame["slots"].get(name, ()))):
                    break
                arrived[name] = turn
        return arrived, spellings

    def assent(self) -> int | None:
        """The last AFFIRM after this service's last CONFIRM, or after the earlier call, whose failure report
        proposes the retry.
        """
        acts = [(u, act[0]) for u, frame in self.seen for act in frame["acts"] if u > self.after]
        asked = max((u for u, act in acts if act == "CONFIRM"), default=self.after)
        return max((u for u, act in acts if act == "AFFIRM" and u > asked > 0), default=None)


def _plain(value: object) -> str:
    return str(value).strip().lower()
