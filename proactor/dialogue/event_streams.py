"""Streams of events on a user's computer, and judged proposals at some of their events (ProactiveBench).

A line holds a prefix of a stream, the task that an assistant proposed there (null, or the text "null": none)
and whether people accepted that. `joined` puts the prefixes together. Which streams are kept for tests is a
function of their names: `fifth`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from proactor.files import SourceError, first_problem, parse_json, text_lines

FILES = ("*.jsonl.gz", "*.jsonl", "reward_data/*.jsonl", "dataset/reward_data/*.jsonl")
"""Where judged lines lie in a folder: the compact file, or ProactiveAgent's release."""
Events = tuple[tuple[str, str], ...]
"""(time, event) of a stream, in order."""


def _null(task: Any) -> Any:
    return None if task == "null" else task


class Event(BaseModel):
    """What happened, and when, as the log writes it."""

    model_config = ConfigDict(frozen=True)

    time: str
    event: str


class Judged(BaseModel):
    """A line; other fields are ignored. ``valid``: whether the proposal, or the silence, was accepted; None
    where nobody said.
    """

    model_config = ConfigDict(frozen=True)

    obs: tuple[Event, ...] = Field(min_length=1)
    pred_task: Annotated[str | None, BeforeValidator(_null)]
    valid: bool | None = None

    @property
    def events(self) -> Events:
        """The events until the proposal."""
        return tuple((e.time, e.event) for e in self.obs)

    @property
    def kind(self) -> str:
        """False-Alarm, Correct-Detection, Correct-Rejection or Missed-Need: what was proposed, and whether it
        was accepted.
        """
        if self.pred_task is None:
            return "Correct-Rejection" if self.valid else "Missed-Need"
        return "Correct-Detection" if self.valid else "False-Alarm"


Line = TypeVar("Line", bound=Judged)


def read_judged(file: Path, kind: type[Line]) -> Iterator[Line]:
    """The lines of a file, plain or gzip. Raises SourceError, naming the line, for one that is none."""
    for number, text in text_lines(file):
        record = parse_json(text, file, number)
        try:
            yield kind.model_validate(record)
        except ValidationError as error:
            raise SourceError(f"{file}:{number}: {first_problem(error)}") from None


def joined(judgements: Sequence[Line]) -> dict[Events, list[Line]]:
    """The longest streams, in the order of the corpus, each with the judgements of its prefixes."""
    by_events: dict[Events, list[Line]] = defaultdict(list)
    for judged in judgements:
        by_events[judged.events].append(judged)
    streams: dict[Events, list[Line]] = {}
    for events in sorted(by_events, key=len, reverse=True):
        whole = next((s for s in streams if s[: len(events)] == events), events)
        streams.setdefault(whole, []).extend(by_events[events])
    order = {events: position for position, events in enumerate(by_events)}
    return dict(sorted(streams.items(), key=lambda item: min(order[j.events] for j in item[1])))


def stream_name(events: Events) -> str:
    """The name of the streams that begin with the first of ``events``."""
    return f"proactivebench/{hashlib.sha256(json.dumps(events[:1]).encode()).hexdigest()[:10]}"


def fifth(names: Iterable[str]) -> frozenset[str]:
    """A fifth of some names, at least one, by their hash: always the same."""
    drawn = sorted(set(names), key=lambda name: hashlib.sha256(f"fifth/{name}".encode()).digest())
    return frozenset(drawn[: max(1, len(drawn) // 5)])
