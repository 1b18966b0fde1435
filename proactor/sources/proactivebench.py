"""ProactiveBench (the reward data of ProactiveAgent): judged streams of events on a user's computer.

A line of the corpus holds a prefix of a stream, a task that an assistant might propose there (null: none),
and people's judgement of it. The reader joins the prefixes back into streams. Events become user turns, so
the agent decides after each of them; the one tool is `propose`. The mapping is [INFERRED]:

- `help_needed` (some task was accepted by all judges [CODE: the release's converter]) says whether to propose
  or to wait at an event. A run of events that need help is one opportunity: coverage and ready window are the
  run, and one proposal inside it is enough. Elsewhere waiting is right and a proposal is a false fire.
- Nobody acted, so there is no logged trigger. An event without a judgement cannot be scored: it lies in no
  window and is counted (``unjudged``).
- ``task="omit"`` (default): `propose` has no parameters and only its timing is scored, since two free texts
  are never equal. ``task="accepted"``: `propose(task)`, with the first accepted task of the run and the
  others as variants; a run without one has no window (``no_accepted_task``).
- ``unit="trace"`` (default): one dialogue per stream. ``unit="judgement"``: one dialogue per line, with all
  events in one turn, so that the judged point is the only decision, and with the category (Correct-Detection,
  False-Alarm, Missed-Need, Correct-Rejection) as domain; many lines share a stream.
- The split is by stream, so no stream is in two parts. The corpus has 16 streams: a part can be empty.
- A proposal only offers something, so `propose` reads and needs no assent.

Release: reward_data/train_data.jsonl and test_data.jsonl; the compact file keeps their lines unchanged. The
folder test_data (traces with candidate tasks, without `help_needed`) is not read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Dialogue, Interval, Reference, Turn
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.event_streams import FILES, Events, Judged, joined, read_judged, stream_name
from proactor.files import find_files
from proactor.sources import base
from proactor.sources.base import Subset
from proactor.sources.corpus import Corpus, make_corpus, sample


class ProactivebenchOptions(BaseModel):
    """How the event streams are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["trace", "judgement"] = Field(
        default="trace", description="a dialogue is a stream, or one judged line"
    )
    task: Literal["omit", "accepted"] = Field(
        default="omit", description="what propose takes as its parameter"
    )


class _Judgement(Judged):
    """A line with the labels that windows are made of."""

    valid: bool
    help_needed: bool
    category: str


OPTIONS = ProactivebenchOptions


def load(path: Path, subset: Subset, options: ProactivebenchOptions) -> Corpus:
    """Reads a folder or file of judgements; see `sources.load`. The limit counts dialogues of the unit."""
    files = find_files(path, *FILES)
    judgements = [judged for file in files for judged in read_judged(file, _Judgement)]
    counters: Counter[str] = Counter()
    for judged in judgements:
        counters[f"category_{judged.category}"] += 1
        unneeded = judged.pred_task and judged.valid and not judged.help_needed
        counters["accepted_without_need"] += bool(unneeded)
    streams = joined(judgements)
    kept = [events for events in streams if subset.includes(stream_name(events))]
    units: dict[str, str] = {}
    if options.unit == "trace":
        taken: Counter[str] = Counter()
        dialogues = []
        for events in kept:
            unit = stream_name(events)
            taken[unit] += 1
            name = f"{unit}-{taken[unit]}" if taken[unit] > 1 else unit
            units[name] = unit
            dialogues.append(_trace(name, events, streams[events], options, counters))
    else:
        firsts = {events[0] for events in kept}
        dialogues = [
            _single(f"{stream_name(judged.events)}/{number}", judged, options)
            for number, judged in enumerate(judgements, start=1)
            if judged.events[0] in firsts
        ]
        units = {dialogue.id: dialogue.id.rsplit("/", 1)[0] for dialogue in dialogues}
    counters["streams"] = len(kept)
    chosen = sample(dialogues, lambda d: d.id, subset.limit, subset.seed)
    return replace(make_corpus(_catalog(options), chosen, counters), units=units)


def _catalog(options: ProactivebenchOptions) -> Catalog:
    task = (Parameter(name="task", description="what to offer, in a few words"),)
    return Catalog(
        tools=(
            Tool(
                name="propose",
                description="offer the user help with what they are doing",
                effect="read",
                parameters=task if options.task == "accepted" else (),
            ),
        )
    )


def _trace(
    name: str,
    events: Events,
    judgements: list[_Judgement],
    options: ProactivebenchOptions,
    counters: Counter[str],
) -> Dialogue:
    """The dialogue of a stream: one user turn for each event."""
    at: dict[int, list[_Judgement]] = defaultdict(list)
    for judged in judgements:
        at[len(judged.obs)].append(judged)
    needed: dict[int, bool] = {}
    for turn in range(1, len(events) + 1):
        answers = {judged.help_needed for judged in at[turn]}
        counters["unjudged"] += not answers
        counters["need_disputed"] += len(answers) > 1
        needed[turn] = answers == {True}
    references: list[Reference] = []
    for need, run in groupby(range(1, len(events) + 1), key=needed.__getitem__):
        if need:
            turns = list(run)
            accepted = [j.pred_task for t in turns for j in at[t] if j.valid and j.pred_task]
            references.append(_reference(f"a{len(references) + 1}", (turns[0], turns[-1]), accepted, options))
    return Dialogue(
        id=name,
        turns=tuple(
            Turn(index=i, speaker="user", text=base.turn_text(f"[{when}] {what}"))
            for i, (when, what) in enumerate(events, start=1)
        ),
        references=tuple(references),
        tools=("propose",),
        domain="events",
        source="proactivebench",
    )


def _single(name: str, judged: _Judgement, options: ProactivebenchOptions) -> Dialogue:
    """The dialogue of one line: all its events in one user turn, which is the only decision point."""
    text = "\n".join(f"[{when}] {what}" for when, what in judged.events)
    accepted = [judged.pred_task] if judged.valid and judged.pred_task else []
    references = (_reference("a1", (1, 1), accepted, options),) if judged.help_needed else ()
    return Dialogue(
        id=name,
        turns=(Turn(index=1, speaker="user", text=base.turn_text(text)),),
        references=references,
        tools=("propose",),
        domain=judged.category,
        source="proactivebench",
    )


def _reference(name: str, window: Interval, accepted: list[str], options: ProactivebenchOptions) -> Reference:
    if options.task == "omit":
        return Reference(id=name, name="propose", coverage=window, ready=window, values_seen=window[0])
    if not accepted:
        return Reference(id=name, name="propose", coverage=window, null_reason="no_accepted_task")
    others = tuple(dict.fromkeys(task for task in accepted[1:] if task != accepted[0]))
    variants = {"task": others} if others else {}
    return Reference(
        id=name,
        name="propose",
        params={"task": accepted[0]},
        variants=variants,
        coverage=window,
        ready=window,
    )
