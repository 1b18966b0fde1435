"""The generator's windows, checked against the words of the dialogue instead of the generator's state."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from proactor.dialogue import Dialogue, Reference, windows
from proactor.sources import load, split_of
from proactor.sources import synthetic_phrases as words
from proactor.sources.synthetic import generate
from proactor.sources.synthetic_pools import POOLS, draw_value
from proactor.sources.synthetic_script import SyntheticOptions
from proactor.sources.synthetic_skills import BY_NAME, SKILLS


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return [generate(index, seed=5) for index in range(600)]


def references(dialogues: list[Dialogue]) -> list[tuple[Dialogue, Reference]]:
    return [(d, r) for d in dialogues for r in d.references]


def text(dialogue: Dialogue, turn: int) -> str:
    return dialogue.turns[turn - 1].text


def test_a_dialogue_depends_on_seed_and_index_only(dialogues: list[Dialogue]) -> None:
    random.seed(1)
    state = random.getstate()
    assert generate(7, seed=5) == dialogues[7]
    assert random.getstate() == state
    assert generate(7, seed=6).turns != dialogues[7].turns
    assert len({d.turns for d in dialogues}) == len(dialogues)


def test_size_and_alternation(dialogues: list[Dialogue]) -> None:
    for dialogue in dialogues:
        assert 6 <= len(dialogue.turns) <= 16
        assert [t.speaker for t in dialogue.turns] == ["user", "agent"] * (len(dialogue.turns) // 2)
        assert all(t.text and len(t.text.split()) <= 40 and "{" not in t.text for t in dialogue.turns)
        assert len(dialogue.tools) == 6
    assert {len(d.turns) for d in dialogues} == {6, 8, 10, 12, 14, 16}


def test_every_value_is_said_literally_before_the_window_opens(dialogues: list[Dialogue]) -> None:
    for dialogue, ref in references(dialogues):
        assert ref.ready is not None and ref.coverage is not None and ref.values_seen is not None
        assert ref.params.keys() == {s.name for s in BY_NAME[ref.name].slots}
        for name, value in ref.params.items():
            assert value in text(dialogue, ref.value_turns[name])
            assert ref.coverage[0] <= ref.value_turns[name] <= ref.ready[0]
        assert ref.values_seen == max(ref.value_turns.values())


def test_a_tool_that_needs_assent_opens_at_the_assent(dialogues: list[Dialogue]) -> None:
    for dialogue, ref in references(dialogues):
        assert ref.ready is not None and ref.coverage is not None
        said = text(dialogue, ref.ready[0])
        if BY_NAME[ref.name].confirm:
            assert said in (*words.ASSENTS, *words.AFTER_HEDGE)
            assert ref.values_seen is not None and ref.values_seen < ref.ready[0]
            repeated = BY_NAME[ref.name].summary.format(**ref.params)
            assert any(repeated in t.text for t in dialogue.turns[ref.coverage[0] : ref.ready[0]])
        else:
            assert said not in (*words.ASSENTS, *words.AFTER_HEDGE)
            held = any(said == release.format(BY_NAME[ref.name].noun) for release in words.RELEASES)
            assert held or any(value in said for value in ref.params.values())


def test_the_window_closes_before_the_report_or_the_revocation(dialogues: list[Dialogue]) -> None:
    endings: Counter[str] = Counter()
    for dialogue, ref in references(dialogues):
        assert ref.ready is not None and ref.coverage is not None
        skill = BY_NAME[ref.name]
        reports = [
            t.index
            for t in dialogue.turns
            if t.speaker == "agent" and t.index > ref.coverage[0] and any(d in t.text for d in skill.done)
        ]
        if ref.observed_trigger is None:
            endings["revoked"] += 1
            assert not reports
            assert text(dialogue, ref.ready[1] + 2) in {r.format(skill.noun) for r in words.REVOCATIONS}
        else:
            assert reports == [ref.observed_trigger + 1] == [ref.coverage[1] + 1]
            forgotten = ref.coverage[1] > ref.ready[1]
            endings["forgotten" if forgotten else "acted"] += 1
            nudged = text(dialogue, ref.coverage[1]) in {n.format(skill.noun) for n in words.NUDGES}
            assert nudged == forgotten
    assert min(endings.values()) > 20 and len(endings) == 3


def test_withdrawn_actions_are_never_reported(dialogues: list[Dialogue]) -> None:
    withdrawn = [(d, r) for d in dialogues for r in d.withdrawn]
    assert len(withdrawn) > 50
    for dialogue, ref in withdrawn:
        skill = BY_NAME[ref.name]
        assert ref.ready is None and ref.coverage is not None
        assert ref.params.keys() == ref.value_turns.keys()
        assert all(v in text(dialogue, ref.value_turns[k]) for k, v in ref.params.items())
        assert max(ref.value_turns.values(), default=0) <= ref.coverage[1]
        assert text(dialogue, ref.coverage[1] + 2) in {w.format(skill.noun) for w in words.WITHDRAWALS}
        assert not any(done in t.text for t in dialogue.turns for done in skill.done)


def test_windows_and_wording_vary(dialogues: list[Dialogue]) -> None:
    widths = Counter(windows.width(r) for _, r in references(dialogues))
    assert widths.keys() == {0, 2, 4, 6} and min(widths.values()) > 0.05 * widths.total()
    assert {r.name for _, r in references(dialogues)} == {s.name for s in SKILLS}
    users = [t.text for d in dialogues for t in d.turns if t.speaker == "user"]
    assert sum(any(h in u for h in words.HOLDS) for u in users) > 5
    assert (
        sum(
            any(u.startswith(c.split("{")[0]) for c in words.CORRECTIONS if not c.startswith("{"))
            for u in users
        )
        > 20
    )
    agents = [t.text for d in dialogues for t in d.turns if t.speaker == "agent"]
    assert sum("which one?" in a for a in agents) > 20
    several = [d for d in dialogues if len(d.references) > 1]
    overlapping = [d for d in several if any(len(windows.open_at(d, u)) > 1 for u in d.decision_turns)]
    assert len(several) > 200 and len(overlapping) > 100


def test_options_change_the_mixture() -> None:
    plain = SyntheticOptions(
        correct=0, hold=0, withdraw=0, revoke=0, forget=0, offer=0, digress=0, max_delay=0
    )
    for index in range(60):
        dialogue = generate(index, options=plain)
        assert not dialogue.withdrawn
        assert all(r.ready == (r.coverage or (0, 0))[1:] * 2 for r in dialogue.references)
    only = SyntheticOptions(skills=("set_alarm", "send_message"), tools=2)
    assert {r.name for i in range(40) for r in generate(i, options=only).references} == {
        "set_alarm",
        "send_message",
    }


def test_load_splits_and_limits() -> None:
    corpus = load("synthetic", split="dev", limit=20, seed=3, size=400)
    assert [d.id for d in load("synthetic", split="dev", limit=5, seed=3).dialogues] == [
        d.id for d in corpus.dialogues[:5]
    ]
    assert all(split_of(d.id) == "dev" for d in corpus.dialogues)
    assert corpus.counters["dialogues"] == 20 and corpus.counters["null"] == 0
    whole = load("synthetic", size=400)
    shares = Counter(split_of(d.id) for d in whole.dialogues)
    assert 290 < shares["train"] < 350 and min(shares.values()) > 20
    assert {d.name for d in corpus.catalog.tools} == set(BY_NAME)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"name": "synthetic", "sise": 3}, "option sise"),
        ({"name": "synthetic", "skills": ("fly",)}, "'fly' is not a synthetic tool"),
        ({"name": "synthetic", "split": "valid"}, "split 'valid'"),
        ({"name": "synthetic", "limit": -1}, "limit -1"),
        ({"name": "synthetic", "path": "here"}, "no path"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        load(**arguments)  # type: ignore[arg-type]


def test_open_values_are_many_and_said_literally() -> None:
    def values(share: float) -> list[str]:
        dialogues = load(
            "synthetic", None, limit=300, open=share, skills=["set_reminder", "add_event"]
        ).dialogues
        for dialogue in dialogues:
            text = " ".join(turn.text for turn in dialogue.turns)
            assert all(v in text for r in dialogue.references for v in r.params.values())
        return [r.params["time"] for d in dialogues for r in d.references]

    listed, half, free = (values(share) for share in (0.0, 0.5, 1.0))
    assert set(listed) <= set(POOLS["time"])
    assert 0.3 < sum(v in POOLS["time"] for v in half) / len(half) < 0.7
    assert not set(free) & set(POOLS["time"]) and len(set(free)) > 2 * len(set(listed))


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("pool", sorted(POOLS))
def test_a_drawn_value_is_none_that_is_taken(pool: str, share: float) -> None:
    rng = random.Random(0)
    first = draw_value(rng, pool, share)
    assert all(draw_value(rng, pool, share, (first,)) != first for _ in range(200))
