"""An evaluation taken apart: the parts add up to the whole, and each line says what it should."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from rich.console import Console

from proactor.dialogue import Action, Dialogue, Reference
from proactor.dialogue.parse import render
from proactor.evaluation.breakdown import (
    NOT_OFFERED,
    Breakdown,
    breakdown,
    breakdown_tables,
    tool_contributions,
)
from proactor.evaluation.play import Evaluation, Replay
from proactor.scoring.metrics import FIELDS, aggregate, matrix, score_dialogue
from tests.proactor.dialogues import ready, scored_dialogues, users

BOOK = Reference(id="b", name="book", params={"day": "Monday"}, coverage=(1, 9), ready=(6, 7))
CALL = Reference(id="c", name="call", coverage=(2, 2), ready=(2, 2))
ADDITIVE = [
    FIELDS.index(name)
    for name in (
        "actions ready early on_time late false references hit lead_sum early_weight first_actions "
        "first_hits first_on_time first_late "
        "first_false first_repeats first_fires first_lead observed saved_sum null_references "
        "width_0_references early_masked null_masked"
    ).split()
]


def evaluation(dialogues: list[Dialogue], outputs: dict[str, dict[int, tuple[Action, ...]]]) -> Evaluation:
    contributions = [score_dialogue(d, outputs[d.id]) for d in dialogues]
    replays = [Replay(k, {u: render(a) for u, a in turns.items()}, turns) for k, turns in outputs.items()]
    return Evaluation(aggregate(contributions), contributions, replays)


@given(scored_dialogues())
@settings(max_examples=60)
def test_tools_add_up_to_the_dialogue(play: tuple[Dialogue, dict[int, tuple[Action, ...]]]) -> None:
    dialogue, outputs = play
    played = evaluation([dialogue], {dialogue.id: outputs})
    tools = tool_contributions([dialogue], played)
    if tools:
        added = np.sum([matrix(rows)[0] for rows in tools.values()], axis=0)
        assert added[ADDITIVE] == pytest.approx(matrix(played.contributions)[0][ADDITIVE])


def example() -> tuple[list[Dialogue], Evaluation]:
    fire = ready("book", day="Monday")
    dialogues = [users(12, BOOK, id=str(i), domain="travel", tools=("book", "call")) for i in range(4)]
    dialogues.append(users(3, CALL, id="phone", domain="home"))
    outputs: dict[str, dict[int, tuple[Action, ...]]] = {
        "0": {1: (fire,)},
        "1": {4: (fire,)},
        "2": {6: (fire,), 7: (fire,)},
        "3": {9: (fire, ready("invented"))},
        "phone": {2: (ready("call"),)},
    }
    return dialogues, evaluation(dialogues, outputs)


def test_by_tool_and_domain() -> None:
    by_part = breakdown(*example(), resamples=200)
    assert [(line.name, line.dialogues, line.references, line.fires) for line in by_part.tools] == [
        ("book", 4, 4, 5),
        ("call", 1, 1, 1),
        (NOT_OFFERED, 1, 0, 1),
    ]
    assert [(line.name, line.references, line.width_0_share) for line in by_part.domains] == [
        ("home", 1, 1.0),
        ("travel", 4, 0.0),
    ]
    book = by_part.tools[0].metrics
    assert book["first_fire_f1"] is not None and book["first_fire_f1"][0] == pytest.approx(2 * 3 / (5 + 4))
    # Of all five dialogues, so that the tools' rates add up: a repeat (dialogue 2) and a name that is not on
    # offer.
    assert [line.metrics["false_per_100"][0] for line in by_part.tools if line.metrics["false_per_100"]] == [
        20,
        0,
        20,
    ]
    assert by_part.tools[2].metrics["lead"] is None
    low, high = book["first_fire_f1"][1:]
    assert 0 <= low < book["first_fire_f1"][0] < high <= 1


def test_by_distance() -> None:
    by_part = breakdown(*example(), resamples=200)
    fires = {row.name: row.fires for row in by_part.distances if row.fires}
    assert fires == {
        "5 or more before": 1,
        "1 to 2 before": 1,
        "inside": 2,
        "1 to 2 after": 1,
        "repeat": 1,
        "unmatched": 1,
    }
    shares = [row.share[0] for row in by_part.distances if row.share]
    assert sum(shares) == pytest.approx(1.0)
    silent = breakdown([users(3, CALL)], evaluation([users(3, CALL)], {"d": {}}), resamples=100)
    assert all(row.share is None and row.fires == 0 for row in silent.distances)


def test_distances_have_their_edges_and_names_not_on_offer_share_a_line() -> None:
    fire = ready("book", day="Monday")
    names = {}
    for turn in range(1, 13):
        lone = users(12, BOOK.model_copy(update={"coverage": (1, 12)}))
        by_part = breakdown([lone], evaluation([lone], {"d": {turn: (fire,)}}), resamples=100)
        names[turn] = next(row.name for row in by_part.distances if row.fires)
    expected = [
        "5 or more before",
        "3 to 4 before",
        "3 to 4 before",
        "1 to 2 before",
        "1 to 2 before",
        "inside",
        "inside",
    ]
    expected += ["1 to 2 after", "1 to 2 after", "3 to 4 after", "3 to 4 after", "5 or more after"]
    assert list(names.values()) == expected
    offered = users(3, tools=("book",))
    by_part = breakdown([offered], evaluation([offered], {"d": {1: (ready("x"), ready("y"))}}), resamples=100)
    assert [(line.name, line.metrics["false_per_100"]) for line in by_part.tools] == [
        (NOT_OFFERED, (200.0, 200.0, 200.0))
    ]


def test_it_is_told_in_json_and_in_tables() -> None:
    by_part = breakdown(*example(), resamples=100)
    assert Breakdown.model_validate(json.loads(json.dumps(by_part.model_dump(mode="json")))) == by_part
    console = Console(width=160)
    with console.capture() as captured:
        for table in breakdown_tables(by_part, most=1):
            console.print(table)
    text = captured.get()
    assert "the 1 most called for of 3" in text and "travel" in text and "inside" in text


def test_a_dialogue_without_a_replay_is_named() -> None:
    dialogues, played = example()
    with pytest.raises(ValueError, match="dialogue 'other' was not played"):
        breakdown([*dialogues, users(2, id="other")], played, resamples=100)
