"""ABCD: customer service chats with the agent's actions (compact JSONL, or the release through `abcd_raw`).

The data's windows run from the first literal mention of the last value to the last turn before the action.
They agree well with labels made by careful reading [measured, see the data's notes]. They are shrunk to user
turns, since the agent decides after those. An action has no window when it has no values (``no_values``) or
when one is never said literally (`unmatched`). The corpus does not annotate assent, so no tool has `confirm`
[INFERRED]. Coverage runs from the first user turn with a value to the window's end [INFERRED].
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from proactor.dialogue import Dialogue, Reference, Turn, windows
from proactor.dialogue.catalog import Catalog, Effect, Parameter, Tool
from proactor.files import find_files, read_validated
from proactor.sources import abcd_raw, abcd_records, base, records
from proactor.sources.base import Malformed, Subset
from proactor.sources.corpus import Corpus

_READS = frozenset(
    {"pull-up-account", "verify-identity", "validate-purchase", "subscription-status", "shipping-status"}
)
_SHAPES = {
    "email": re.compile(r"\S+@\S+"),
    "zip_code": re.compile(r"\d{5}"),
    "order_id": re.compile(r"\d{10}"),
    "phone": re.compile(r"\(?\d{3}\)?[ -]\d{3}[ -]\d{4}"),
    "amount": re.compile(r"\d{1,4}"),
    "pin_number": re.compile(r"\d{4,6}"),
}


class AbcdOptions(BaseModel):
    """How ABCD is read; both options concern the release's own file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: Literal["all", "train", "dev", "test"] = Field(
        default="all", description="part of the release's own split"
    )
    max_turns: int | None = Field(
        default=None, ge=1, description="cut a conversation of the release after so many turns (ABCD+: 50)"
    )


OPTIONS = AbcdOptions


def load(path: Path, subset: Subset, options: AbcdOptions) -> Corpus:
    """Reads a folder or file of either format, with ontology.json beside it; see `sources.load`.

    In a folder, the release's abcd_v*.json[.gz] comes first (see `abcd_raw`).
    """
    release = ("abcd_v*.json.gz", "abcd_v*.json", "data/abcd_v*.json*")
    file = find_files(path, *release, "abcd*.jsonl", "abcd*.jsonl.gz")[-1]
    reader = _Reader(file.parent, options)
    counters: Counter[str] = Counter()
    if ".jsonl" in file.name:
        return base.convert_all(subset.choose_lines([file]), reader.dialogue, reader.catalog, counters)
    chosen = subset.choose(abcd_raw.conversations(file, options.part))
    return base.convert_all(chosen, reader.dialogue, reader.catalog, counters)


class _Reader:
    """Builds dialogues and the catalog."""

    def __init__(self, folder: Path, options: AbcdOptions) -> None:
        self.options = options
        ontology = read_validated(folder / "ontology.json", TypeAdapter(abcd_records.AbcdOntology))
        values = ontology.values.enumerable
        self.values = {slot: {value.lower() for value in listed} for slot, listed in values.items()}
        self.slots: dict[str, list[str]] = {}
        tools: list[Tool] = []
        for group, actions in ontology.actions.items():
            for name, slots in actions.items():
                self.slots[name] = slots
                tools.append(_tool(name, group, slots, values))
        self.catalog = Catalog(tools=tuple(tools))

    def dialogue(self, record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        """The dialogue of a record of either format."""
        if "delexed" in record:
            records.check(abcd_records.AbcdRelease, record)
            record = abcd_raw.compact(record, self.options.max_turns, counters)
        else:
            records.check(abcd_records.AbcdCompact, record)
        turns = base.turns_of(record)
        scenario = record["scenario"]
        facts = {
            k: str(v).lower() for part in ("personal", "order") for k, v in scenario.get(part, {}).items()
        }
        references = tuple(
            self._reference(turns, action, facts, f"a{i}", counters)
            for i, action in enumerate(record["actions"], 1)
        )
        return Dialogue(
            id=record["dialogue_id"],
            turns=turns,
            references=references,
            tools=self.catalog.names,
            domain=record["flow"],
            source="abcd",
        )

    def _reference(
        self,
        turns: tuple[Turn, ...],
        action: dict[str, Any],
        facts: dict[str, str],
        name: str,
        counters: Counter[str],
    ) -> Reference:
        params: dict[str, str] = {}
        value_turns: dict[str, int] = {}
        if len(action["values"]) != len(action["value_turns"]):
            raise Malformed(f"{action['method']}: `values` and `value_turns` are not of one length")
        for value, turn in zip(action["values"], action["value_turns"], strict=True):
            slot = self._slot(action["method"], value, facts, params, counters)
            params[slot] = value
            if turn is not None:
                value_turns[slot] = turn + 1
        latest = base.last_user_turn(turns, action["last_visible_turn"] + 1)
        if latest is None:
            raise Malformed(f"{action['method']}: an action before the user spoke")
        window = action["window"]
        ready = windows.snap(turns, (window["earliest"] + 1, window["latest"] + 1)) if window else None
        reason = ""
        if ready is None and window:
            reason = "no_decision_turn"
        elif ready is None:
            reason = "unmatched" if params else "no_values"
        begin = windows.snap(turns, (min(value_turns.values(), default=latest), latest))
        return Reference(
            id=name,
            name=action["method"],
            params=params,
            coverage=(min((begin or (latest, latest))[0], ready[0] if ready else latest), latest),
            ready=ready,
            observed_trigger=latest,
            value_turns=value_turns,
            values_seen=max(value_turns.values()) if params and value_turns.keys() >= params.keys() else None,
            null_reason=reason,
        )

    def _slot(
        self, method: str, value: str, facts: dict[str, str], taken: dict[str, str], counters: Counter[str]
    ) -> str:
        """The slot of ``method`` that a bare value belongs to: by scenario, then ontology, then shape."""
        free = [slot for slot in self.slots[method] if slot not in taken]
        low = value.lower()
        for slot in free:
            if facts.get(slot) == low or low in self.values.get(slot, ()):
                return slot
        for slot in free:
            if slot in _SHAPES and _SHAPES[slot].fullmatch(low):
                counters["slot_by_shape"] += 1
                return slot
        counters["slot_by_position"] += 1
        return free[0] if free else f"value_{len(taken) + 1}"


def _tool(name: str, group: str, slots: list[str], values: dict[str, list[str]]) -> Tool:
    effect: Effect = "read" if group == "faq_policy" or name in _READS else "write"
    if name in ("offer-refund", "make-purchase"):
        effect = "irreversible"
    parameters = (Parameter(name=slot, required=False, values=tuple(values.get(slot, ()))) for slot in slots)
    return Tool(name=name, description=name.replace("-", " "), effect=effect, parameters=tuple(parameters))
