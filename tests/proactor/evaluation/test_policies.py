"""Trivial policies: what they know and what they must not know."""

from __future__ import annotations

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.evaluation.play import evaluate_policies
from proactor.evaluation.policies import (
    POLICIES,
    always,
    human,
    logs_triggers,
    never,
    values_in_text,
    values_seen,
)
from proactor.report.comparison import rival, table
from proactor.rewards import score_replay
from proactor.scoring.metrics import aggregate
from proactor.sources import load
from tests.proactor.dialogues import ready, users

BOOK = Reference(
    id="b",
    name="book",
    params={"day": "Monday", "time": "9"},
    coverage=(2, 6),
    ready=(5, 5),
    value_turns={"day": 1, "time": 3},
    values_seen=3,
)


def test_never_waits() -> None:
    assert never(users(6, BOOK)) == dict.fromkeys(range(1, 7), ())


def test_always_fires_every_tool_with_the_values_said_last() -> None:
    later = BOOK.model_copy(update={"id": "c", "params": {"day": "Friday"}, "value_turns": {"day": 4}})
    outputs = always(users(6, BOOK, later, tools=("call", "book")))
    assert [outputs[u][0] for u in outputs] == [ready("call")] * 6
    assert [outputs[u][1].params for u in range(1, 5)] == [
        {"day": "Monday"},
        {"day": "Monday"},
        {"day": "Monday", "time": "9"},
        {"day": "Friday", "time": "9"},
    ]


def test_always_does_not_look_at_windows() -> None:
    moved = BOOK.model_copy(update={"coverage": (1, 7), "ready": (1, 7)})
    unknown = BOOK.model_copy(update={"coverage": None, "ready": None})
    assert always(users(7, BOOK)) == always(users(7, moved)) == always(users(7, unknown))


def test_values_seen_fires_once_without_waiting_for_the_assent() -> None:
    fires = {u: a for u, a in values_seen(users(7, BOOK)).items() if a}
    assert fires == {3: (ready("book", day="Monday", time="9"),)}
    unsaid = BOOK.model_copy(update={"values_seen": None})
    assert not any(values_seen(users(7, unsaid)).values())
    raised_later = BOOK.model_copy(update={"coverage": (4, 6)})
    assert values_seen(users(7, raised_later))[4]
    withdrawn = BOOK.model_copy(update={"ready": None})
    assert values_seen(users(7, withdrawn=(withdrawn,)))[3]


def test_the_human_fires_when_the_log_says_so() -> None:
    logged = BOOK.model_copy(update={"observed_trigger": 5})
    assert {u: a for u, a in human(users(7, logged)).items() if a} == {
        5: (ready("book", day="Monday", time="9"),)
    }
    assert not any(human(users(7, BOOK)).values())
    turns = tuple(
        Turn(index=i, speaker=s, text="x") for i, s in enumerate(("user", "agent", "user", "agent"), 1)
    )
    acted = BOOK.model_copy(update={"coverage": (1, 4), "ready": (3, 4), "observed_trigger": 4})
    assert human(Dialogue(id="a", turns=turns, references=(acted,))) == {
        1: (),
        3: (ready(BOOK.name, **BOOK.params),),
    }
    before = acted.model_copy(update={"observed_trigger": 0})
    assert human(Dialogue(id="a", turns=turns, references=(before,))) == {1: (), 3: ()}


def test_the_human_stands_beside_the_trivial_policies_and_is_none_of_them() -> None:
    dialogues = load("synthetic", limit=20).dialogues
    assert logs_triggers(dialogues)
    policies = evaluate_policies(dialogues)
    assert set(policies) == {"never", "always", "values_seen", "human"}
    assert (policies["human"].metrics["first_fire_f1"] or 0) > (
        policies["always"].metrics["first_fire_f1"] or 0
    )
    line = next(
        x
        for rows in table(policies["never"], policies["never"], policies).values()
        for x in rows
        if x.metric.key == "on_time_f1"
    )
    best = {name: e.metrics["on_time_f1"] or 0.0 for name, e in policies.items()}
    assert max(best, key=lambda n: best[n]) == "human"
    assert rival("on_time_f1", line, policies["never"], policies).name != "human"
    unlogged = [
        d.model_copy(
            update={
                "references": tuple(r.model_copy(update={"observed_trigger": None}) for r in d.references)
            }
        )
        for d in dialogues
    ]
    assert not logs_triggers(unlogged) and "human" not in evaluate_policies(unlogged)


def test_values_in_text_reads_with_the_values_of_training_dialogues() -> None:
    day, time = Parameter(name="day"), Parameter(name="time", required=False)
    catalog = Catalog(
        tools=(
            Tool(name="book", parameters=(day, time)),
            Tool(name="list"),
            Tool(name="call", parameters=(day,)),
        )
    )
    policy = values_in_text([users(6, BOOK)], catalog)
    texts = ["Mondays at 9, or SuperMonday", "At 9 on friday, not on XMonday: MONDAY?", "Monday, 9."]
    turns = tuple(Turn(index=i, speaker="user", text=t) for i, t in enumerate(texts, 1))
    assert policy(Dialogue(id="t", turns=turns)) == {
        1: (),
        2: (ready("book", day="MONDAY", time="9"),),
        3: (),
    }
    listed = Catalog(tools=(Tool(name="call", parameters=(day.model_copy(update={"values": ("Friday",)}),)),))
    assert values_in_text([], listed)(Dialogue(id="t", turns=turns))[2] == (ready("call", day="friday"),)


def test_order_on_synthetic_dialogues() -> None:
    dialogues = load("synthetic", limit=60).dialogues
    scores = {
        name: aggregate(score_replay(d, policy(d))[0] for d in dialogues) for name, policy in POLICIES.items()
    }
    f1 = {name: m["first_fire_f1"] or 0.0 for name, m in scores.items()}
    assert f1["never"] == 0.0 < f1["always"] < 0.3 < min(f1["values_seen"], f1["human"])
    assert scores["always"]["recall"] == 1.0
    strict = scores["values_seen"]["on_time_f1"]
    assert strict is not None and strict < 0.8  # it does not wait for assents
