"""Reading a judge's answer: every text gives a verdict over exactly the ids asked for, or a named failure."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.ruler.verdict import LONGEST, Unusable, Verdict, read_verdict, verdict_schema
from tests.proactor.ruler.judged import verdict

IDS = ("1", "2")


def values(verdict_read: Verdict | Unusable) -> dict[str, float]:
    assert isinstance(verdict_read, Verdict), verdict_read
    return {id: score.value for id, score in verdict_read.scores.items()}


def reason(text: str, parts: tuple[str, ...] = ()) -> str:
    result = read_verdict(text, IDS, parts)
    assert isinstance(result, Unusable), result
    return result.reason


def test_scores_go_by_id_not_by_place() -> None:
    """T2.5."""
    assert values(read_verdict(verdict({"2": 0.9, "1": 0.1}), IDS)) == {"1": 0.1, "2": 0.9}


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"scores":[{"id":"1","score":1},{"id":"2","score":0}]}\n```',
        'Sure! {"scores":[{"id":1,"score":1},{"id":2,"score":0}]} Hope that helps.',
        '<think>maybe {"scores":[{"id":"1","score":0},{"id":"2","score":0}]}</think>'
        '[{"id":"1","score":1},{"id":"2","score":0}]',
        'maybe {"scores":[{"id":"1","score":0},{"id":"2","score":0}]}\n</think>\n'
        '[{"id":"1","score":1},{"id":"2","score":0}]',
        'I looked at [1] and {2}: {"scores":[{"id":" 1 ","score":1.0,"note":[]},{"id":"2","score":-0.0}]}',
    ],
)
def test_what_stands_around_the_json_is_passed_over(text: str) -> None:
    assert values(read_verdict(text, IDS)) == {"1": 1.0, "2": 0.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        '{"scores":[{"id":"1","sco',
        '{"scores":[{"id":"1","score":1},{"id":"2","score"',
        "[" * 5000,
        '{"scores":{"1":0.5,"2":0.4}}',
        '{"scores":[]}',
        "[0.1,0.2]",
        '<think>{"scores":[{"id":"1","score":1},{"id":"2","score":0}]}',
        '{"scores":"' + "x" * LONGEST + '"}',
    ],
)
def test_bad_json(text: str) -> None:
    assert reason(text) == "bad_json"


@pytest.mark.parametrize(
    "ids",
    [
        ["1"],
        ["1", "2", "3"],
        ["1", "1"],
        ["1", "2", "2"],
        ["1", "3"],
        ["A", "B"],
        [True, "2"],
        [None, "2"],
        [1.0, 2],
    ],
)
def test_wrong_ids(ids: list[object]) -> None:
    assert reason(json.dumps({"scores": [{"id": i, "score": 0.5} for i in ids]})) == "wrong_ids"


@pytest.mark.parametrize(
    "score", ["NaN", "Infinity", "-Infinity", "1e999", "true", '"0.5"', "null", "[1]", "1" + "0" * 5000]
)
def test_bad_scores(score: str) -> None:
    text = f'{{"scores":[{{"id":"1","score":0.5}},{{"id":"2","score":{score}}}]}}'
    assert reason(text) == "bad_scores"
    text = f'{{"scores":[{{"id":"1","score":0.5,"timing":0}},{{"id":"2","score":0.5,"timing":{score}}}]}}'
    assert reason(text, ("timing",)) == "bad_scores"
    assert isinstance(read_verdict(text, IDS), Verdict), "a sub-score nobody asked for does not matter"


def test_a_missing_score_or_one_given_twice_is_bad() -> None:
    assert reason('{"scores":[{"id":"1","score":0.5},{"id":"2"}]}') == "bad_scores"
    assert reason('{"scores":[{"id":"1","score":0.5},{"id":"2","score":1,"score":0}]}') == "bad_scores"


def test_numbers_outside_are_clamped_and_counted() -> None:
    result = read_verdict(verdict({"1": 1.5, "2": -3}, timing=2), IDS, ("timing", "restraint"))
    assert values(result) == {"1": 1.0, "2": 0.0}
    assert isinstance(result, Verdict)
    assert (result.clamped, result.missing_parts) == (4, 2)
    assert result.scores["1"].parts == {"timing": 1.0}


LEAVES = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3)
KEYS = st.sampled_from(["scores", "id", "score", "timing"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner), max_leaves=8
)


@settings(max_examples=60)
@given(st.text() | VALUES.map(json.dumps))
def test_total(text: str) -> None:
    check(read_verdict(text, IDS, ("timing",)))


ENTRIES = st.tuples(
    st.sampled_from(["1", "2", "3", 1, None]), st.sampled_from(["0.5", "7", "NaN", '"x"', "-1e400", "true"])
)


@given(st.lists(ENTRIES, max_size=3), st.integers(0, 60), st.text(max_size=5))
def test_total_near_a_verdict(entries: list[tuple[object, str]], cut: int, junk: str) -> None:
    body = ",".join(f'{{"id":{json.dumps(i)},"timing":{s},"score":{s}}}' for i, s in entries)
    text = f'{{"scores":[{body}]}}'
    check(read_verdict(junk + text[: len(text) - cut], IDS, ("timing",)))
    check(read_verdict(text, IDS, ("timing",)))


def check(result: Verdict | Unusable) -> None:
    if isinstance(result, Unusable):
        assert result.reason in ("bad_json", "wrong_ids", "bad_scores")
        return
    assert set(result.scores) == set(IDS)
    for score in result.scores.values():
        assert all(math.isfinite(v) and 0.0 <= v <= 1.0 for v in (score.value, *score.parts.values()))


def test_the_schema_asks_for_each_id_and_part() -> None:
    item = verdict_schema(IDS, ("timing",))["properties"]["scores"]["items"]
    assert item["properties"]["id"]["enum"] == ["1", "2"]
    assert item["required"] == ["id", "explanation", "timing", "score"]
    assert item["additionalProperties"] is False


ONE, TWO = '{"id":"1","score":1}', '{"id":"2","score":0}'


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}\n{TWO}",
        f"1. {ONE}\n2. {TWO}",
        f"```json\n{ONE}\n{TWO}\n```",
        "{'scores': [{'id': '1', 'score': 1}, {'id': '2', 'score': 0},]}",
        f"[oops {ONE}] is broken, so [{ONE},{TWO}]",
    ],
)
def test_other_forms_of_the_list(text: str) -> None:
    assert values(read_verdict(text, IDS)) == {"1": 1.0, "2": 0.0}


def test_another_verdict_in_an_answer_is_counted() -> None:
    read = read_verdict(f"[{ONE},{TWO}] or [{TWO},{ONE}] or [{ONE},{TWO}]", IDS)
    assert values(read) == {"1": 1.0, "2": 0.0} and isinstance(read, Verdict) and read.further == 1


def test_half_a_surrogate_pair_in_an_explanation_becomes_text() -> None:
    text = f'{{"scores":[{{"id":"1","explanation":"\\ud83d","score":1}},{TWO}]}}'
    read = read_verdict(text, IDS)
    assert isinstance(read, Verdict) and read.scores["1"].explanation == "?"
