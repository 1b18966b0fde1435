"""Corpora: dialogues with the catalog of their tools, and how a part of one is taken."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Dialogue, windows
from proactor.dialogue.catalog import Catalog, Effect, Parameter, Tool
from proactor.files import SourceError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class SelectionError(SourceError):
    """A corpus, split, limit, domain or reader option that does not exist or does not fit."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Dialogues, the catalog of their tools, and counters of what was read, masked, adjusted or dropped.

    By the id of a dialogue, ``dropped``: why the reader dropped it; ``losses``: what it left out of one that
    it kept; ``places``: the file and line of one without an id of its own; ``units``: the name that the split
    goes by where it is not the id, as for several dialogues of one recording.
    """

    catalog: Catalog
    dialogues: tuple[Dialogue, ...]
    counters: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    losses: dict[str, tuple[str, ...]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.dialogues)

    def unit(self, dialogue: Dialogue) -> str:
        """The name that the dialogue's split and share go by."""
        return self.units.get(dialogue.id, dialogue.id)


def make_corpus(
    catalog: Catalog,
    dialogues: Iterable[Dialogue],
    counters: Mapping[str, int] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> Corpus:
    """A corpus whose counters are those of `windows.count` and the reader's own."""
    listed = tuple(dialogues)
    return Corpus(catalog, listed, windows.count(listed) | dict(counters or {}), dict(dropped or {}))


def with_dialogues(
    corpus: Corpus, dialogues: Iterable[Dialogue], counters: Mapping[str, int] | None = None
) -> Corpus:
    """``corpus`` with other dialogues, counted anew; keeps the reader's counters and adds ``counters``."""
    counted = windows.count(corpus.dialogues)
    kept = {name: number for name, number in corpus.counters.items() if name not in counted}
    made = make_corpus(corpus.catalog, dialogues, kept | dict(counters or {}), corpus.dropped)
    return replace(made, losses=corpus.losses, places=corpus.places, units=corpus.units)


ToolRow = tuple[str, Effect, tuple[str, ...]]
"""(description, effect, slots) of a tool in a source whose release has no catalog."""


def catalog_of(
    rows: Mapping[str, ToolRow], *, asks: tuple[Effect, ...], required: Collection[str] = ()
) -> Catalog:
    """A catalog from rows by tool name. ``asks``: effects that need the user's assent. ``required``: names of
    the required slots.
    """
    return Catalog(
        tools=tuple(
            Tool(
                name=name,
                description=description,
                effect=effect,
                confirm=effect in asks,
                parameters=tuple(Parameter(name=slot, required=slot in required) for slot in slots),
            )
            for name, (description, effect, slots) in rows.items()
        )
    )


# -- subsets ---

Item = TypeVar("Item")


def sample(items: Sequence[Item], name: Callable[[Item], str], limit: int | None, seed: int) -> list[Item]:
    """The ``limit`` items whose names hash lowest, in order. A larger limit only adds items."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = heapq.nsmallest(limit, range(len(items)), key=lambda i: _hash("sample", seed, name(items[i])))
    return [items[i] for i in sorted(chosen)]


def split_of(dialogue_id: str) -> Split:
    """80/10/10 by a hash of the id alone: independent of seed, machine and the other dialogues."""
    tenth = _hash("split", dialogue_id) % 10
    if tenth < 8:
        return "train"
    return "dev" if tenth == 8 else "test"


def share_of(dialogue_id: str) -> float:
    """A hash of the id as a multiple of 0.01 in [0, 1), independent of the split's hash."""
    return _hash("share", dialogue_id) % 100 / 100


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def select_share(corpus: Corpus, share: tuple[float, float], limit: int | None, seed: int) -> Corpus:
    """At most ``limit`` dialogues with `share_of` in [low, high); counts the others (``other_share``)."""
    kept = [d for d in corpus.dialogues if share[0] <= share_of(corpus.unit(d)) < share[1]]
    counters = {"other_share": len(corpus.dialogues) - len(kept)}
    return with_dialogues(corpus, sample(kept, lambda d: d.id, limit, seed), counters)


class Selection(BaseModel):
    """The dialogues of some ``domains`` (empty: all) with at most ``max_turns`` turns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...] = ()
    max_turns: int | None = Field(default=None, ge=1)

    def apply(self, corpus: Corpus, limit: int | None, seed: int) -> Corpus:
        """The selected dialogues, at most ``limit`` of them (a sample by ``seed``); the others are counted.

        Raises SelectionError for a domain that no dialogue has.
        """
        known = {d.domain for d in corpus.dialogues}
        if missing := set(self.domains) - known:
            raise SelectionError(
                f"keep.domains: no dialogue is of {sorted(missing)[0]!r}; there are "
                f"{', '.join(sorted(known))}"
            )
        counters: Counter[str] = Counter()
        kept = []
        for dialogue in corpus.dialogues:
            foreign = bool(self.domains) and dialogue.domain not in self.domains
            long = self.max_turns is not None and len(dialogue.turns) > self.max_turns
            counters["other_domain"] += foreign
            counters["too_many_turns"] += long and not foreign
            if not (foreign or long):
                kept.append(dialogue)
        chosen = sample(kept, lambda d: d.id, limit, seed)
        made = make_corpus(corpus.catalog, chosen, counters, corpus.dropped)
        return replace(made, losses=corpus.losses, places=corpus.places, units=corpus.units)
