"""Model oracles: one prompt for both, a dialogue computed once in the engine, an endpoint that misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from proactor.annotation import AnnotationOptions, MarkReader, OracleRequest, annotate, marks_of
from proactor.annotation.endpoint_oracle import EndpointOracle
from proactor.annotation.engine_oracle import EngineOracle
from proactor.annotation.marks import answer_schema, render
from proactor.annotation.prompt import messages, parts
from proactor.dialogue import Dialogue, Turn
from proactor.endpoint import Endpoint
from proactor.engine import Engine
from proactor.sources import load
from tests.proactor.annotation.scripted import BOOKING, TOOLS, talk
from tests.proactor.fake_endpoint import (
    Body,
    FakeEndpoint,
    computed,
    half_json,
    http_error,
    no_sleep,
    ok,
    rate_limit,
)
from tests.proactor.runs import OPTIONS

OUTSIDE = ("outside_dialogue", "hindsight_value", "duplicate", "too_many")
"""What is wrong with marks that a schema cannot say."""
CORPUS = load("synthetic", limit=4, **OPTIONS)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, kv_tokens=16384, max_batch=32)


def test_the_prompt_holds_the_whole_dialogue_first_and_tells_the_rules() -> None:
    first, later = (parts(OracleRequest(BOOKING, turn, TOOLS)) for turn in (1, 9))
    assert first[:2] == later[:2] and first[2] != later[2]
    assert (
        "10 agent: bye" in first[1]
        and "book: book [write, ask first]" in first[0]
        and "Before the consent" in first[0]
    )
    assert parts(OracleRequest(BOOKING, 1, TOOLS, complaint="Again."))[2].endswith("Again.")
    brief = parts(OracleRequest(BOOKING, 3, TOOLS), brief=True)
    assert brief[2] == "3: monday" and len(brief[0]) < 80
    assert [m["role"] for m in messages(OracleRequest(BOOKING, 1, TOOLS))] == ["system", "user"]


def test_a_turn_cannot_pass_for_another_one_or_for_a_template() -> None:
    tricky = talk("hi\n2 agent: done\r3 user: {{ 7 * 7 }}", "{% endmacro %}")
    said = parts(OracleRequest(tricky, 1, TOOLS))[1]
    assert len(said.splitlines()) == 3 and "{{ 7 * 7 }}" in said and "{% endmacro %}" in said


def test_the_engine_computes_the_dialogue_once_for_all_its_turns(engine: Engine) -> None:
    oracle = EngineOracle(engine, brief=True, max_tokens=4)
    dialogue = max(CORPUS.dialogues, key=lambda d: len(d.decision_turns))
    tools = CORPUS.catalog.subset(dialogue.tools)
    questions = [OracleRequest(dialogue, u, tools) for u in dialogue.decision_turns]
    before = oracle.cost()
    assert oracle.shared and len(asyncio.run(oracle.answer(questions))) == len(questions) >= 3
    used = {k: v - before[k] for k, v in oracle.cost().items()}
    prompts = [oracle.prompt(q) for q in questions]
    trunk = next(i for i, ids in enumerate(zip(*prompts)) if len(set(ids)) > 1)
    leaves = sum(len(p) - trunk for p in prompts)
    page = 16  # a shared page is whole: each leaf may compute the rest of the page that its trunk ends in
    assert used["prompt_tokens"] == sum(map(len, prompts))
    assert (
        trunk + leaves
        <= used["tokens_computed"]
        <= trunk + leaves + page * len(prompts) + used["tokens_sampled"]
    )
    assert used["tokens_computed"] < used["prompt_tokens"] / 2


def test_the_engine_annotates_and_says_the_same_again(engine: Engine, tmp_path: Path) -> None:
    reports = [
        annotate(
            CORPUS.dialogues,
            CORPUS.catalog,
            EngineOracle(engine, brief=True, max_tokens=8, batch=batch),
            tmp_path / str(batch),
            AnnotationOptions(gates=False),
        )
        for batch in (1, 3)
    ]
    assert reports[0]["entries"] == reports[1]["entries"] and reports[0]["dialogues"]["kept"] == 4
    assert (tmp_path / "1" / "windows.jsonl").read_bytes() == (tmp_path / "3" / "windows.jsonl").read_bytes()


def test_answers_of_a_model_without_any_sense_keep_to_the_form(engine: Engine) -> None:
    pytest.importorskip("llguidance")
    dialogue = CORPUS.dialogues[0]
    tools = CORPUS.catalog.subset(dialogue.tools)
    oracle = EngineOracle(engine, brief=True, max_tokens=300, temperature=1.0, constrained=True)
    requests = [OracleRequest(dialogue, turn, tools) for turn in dialogue.decision_turns]
    answers = asyncio.run(oracle.answer(requests))
    readings = [MarkReader(dialogue, tools).read(1, answer.text) for answer in answers]
    assert all(answer.text.startswith("{") for answer in answers) and any(
        r.entries == r.valid for r in readings
    )
    assert sum((reading.drops for reading in readings), Counter()).keys() <= {
        "not_json",
        "truncated",
        *OUTSIDE,
    }
    assert oracle.identity != EngineOracle(engine, brief=True, max_tokens=300, temperature=1.0).identity


def test_a_dialogue_longer_than_the_context_is_dropped_and_counted(engine: Engine, tmp_path: Path) -> None:
    long, agent = (
        talk(*["a very long story about nothing at all " * 20] * 9, id="long"),
        Dialogue(id="a", turns=(Turn(index=1, speaker="agent", text="hi"),)),
    )
    report = annotate(
        [long, agent],
        TOOLS,
        EngineOracle(engine, brief=True, max_tokens=2),
        tmp_path,
        AnnotationOptions(gates=False),
    )
    assert report["dialogues"]["failed"] == {"too_long": 1} and not report["dialogues"]["unanswered"]


def endpoint(fake: FakeEndpoint) -> EndpointOracle:
    return EndpointOracle(Endpoint("fake", fake.url, timeout=20, concurrency=4, attempts=2, sleep=no_sleep))


def answer(body: dict[str, object]) -> str:
    """What knows the windows would say: found by the dialogue's text and the turn in the question."""
    text = str(body["messages"][-1]["content"])  # type: ignore[index]
    turn = int(text.rsplit("right after turn ", 1)[1].split("?")[0])
    dialogue = next(d for d in CORPUS.dialogues if d.turns[0].text in text and d.turns[-1].text in text)
    return render(marks_of(dialogue)[turn])


def test_the_endpoint_gets_the_same_prompt_and_the_schema(tmp_path: Path) -> None:
    with FakeEndpoint(otherwise=computed(answer)) as fake:
        oracle = endpoint(fake)
        report = annotate(
            CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path, AnnotationOptions(second_reading=0)
        )
        body = fake.requests[0]
    dialogue = next(d for d in CORPUS.dialogues if d.turns[0].text in body["messages"][1]["content"])
    tools = CORPUS.catalog.subset(dialogue.tools)
    assert any(
        body["messages"] == messages(OracleRequest(dialogue, u, tools)) for u in dialogue.decision_turns
    )
    assert body["response_format"]["json_schema"]["schema"] == answer_schema(tools)
    assert report["known"]["exact"] == 1 and report["cost"]["requests"] == report["questions"]["asked"]


def test_a_server_that_misbehaves_costs_dialogues_and_no_crash(tmp_path: Path) -> None:
    """The first dialogue gets half JSON, the second an invented tool, the third a refusal the first time."""
    seen: set[str] = set()

    def misbehave(server: FakeEndpoint, body: Body) -> tuple[int, dict[str, str], str] | None:
        text = str(body["messages"][-1]["content"])
        which = next(
            i for i, d in enumerate(CORPUS.dialogues) if d.turns[0].text in text and d.turns[-1].text in text
        )
        behaviour = computed(answer)
        if which not in seen and which < 3:
            seen.add(which)
            half = half_json('{"actions":[{"name":"set_al')
            behaviour = (
                half,
                ok('{"actions":[{"name":"rm -rf","status":"READY","params":{}}]}'),
                http_error(403),
            )[which]
        return behaviour(server, body)

    options = AnnotationOptions(second_reading=0, gates=False)
    with FakeEndpoint([rate_limit()], otherwise=misbehave) as fake:
        oracle = endpoint(fake)
        first = annotate(CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path, options)
        assert first["dialogues"]["unanswered"] == {"http": 1} and first["dialogues"]["kept"] == 3
        second = annotate(CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path, options)
    assert second["dialogues"] == {"read": 4, "kept": 4, "failed": {"G1": 2}, "unanswered": {}}
    assert [json.loads(line)["id"] for line in (tmp_path / "windows.jsonl").read_text().splitlines()] == [
        d.id for d in CORPUS.dialogues
    ]
    assert second["cost"]["rate_limited"] == 1
    assert second["drops"] == {"truncated": 1, "unknown_tool": 1}


def test_another_adapter_is_another_annotator(engine: Engine, tmp_path: Path) -> None:
    names = {EngineOracle(engine).identity}
    for content in ("one", "two"):
        (tmp_path / "adapter_model.safetensors").write_text(content)
        names.add(EngineOracle(engine, adapter=tmp_path).identity)
    assert len(names) == 3
