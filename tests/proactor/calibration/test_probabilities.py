"""Probabilities of tools: equal to the model's next-token distributions, disjoint, each trunk row once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from proactor.calibration import probabilities as module
from proactor.calibration.probabilities import ProbabilityError, answers, score
from proactor.calibration.score_table import ScoreTable, score_table
from proactor.dialogue import Action, Status
from proactor.dialogue.board import EMPTY
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.parse import parse, render
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import ChatFormat, Engine, Sampling
from proactor.engine.tokenizer import load_tokenizer
from proactor.sources import load
from proactor.training.small_model import build_model, train_tokenizer
from tests.proactor.runs import OPTIONS, SIZE

CORPUS = load("synthetic", split="dev", limit=2, **OPTIONS)
NESTED = Catalog(
    tools=(
        Tool(name="book", parameters=(Parameter(name="day"), Parameter(name="READ"))),
        Tool(name="book_table"),
        Tool(name='b"k', parameters=(Parameter(name="day"),)),
    )
)


WAYS: tuple[dict[str, str], ...] = ({}, {"day": "x"}, {"READ": "x"})


@pytest.fixture(scope="module", params=[True, False], ids=["deterministic", "fast"])
def engine(request: pytest.FixtureRequest, tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, deterministic=request.param, kv_tokens=8192)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, kv_tokens=8192)


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A random model whose tokenizer, as those of large models, merges a closing quote with the next text."""
    texts = [
        render((Action(name=t.name, params=p, status=s),)) for t in NESTED.tools for p in WAYS for s in Status
    ]
    texts += [
        render([Action(name="book", status=Status.READY), Action(name="book_table", status=Status.READY)])
    ]
    tokenizer = train_tokenizer(texts * 50, 420)
    folder = tmp_path_factory.mktemp("merging")
    model = build_model(tokenizer, SIZE)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Engine.load(folder, kv_tokens=8192)


def encoder(engine: Engine, catalog: Catalog = CORPUS.catalog, mode: str = "plain") -> PromptEncoder:
    assert engine.chat is not None
    return PromptEncoder(engine.chat, catalog, PromptStyle(instructions="", mode=mode))  # type: ignore[arg-type]


def test_waiting_is_the_exact_probability_of_the_empty_answer(engine: Engine) -> None:
    prompts, dialogue = encoder(engine), CORPUS.dialogues[0]
    probabilities = next(score(engine, prompts, [dialogue])).probabilities
    wait = prompts.answer(())
    assert probabilities.dialogue_id == dialogue.id
    for turn, (u, prompt) in zip(probabilities.turns, prompts.prompts(dialogue), strict=True):
        whole = engine.logprobs([[*prompt, *wait]], [(len(prompt), len(prompt) + len(wait))])[0]
        assert turn.turn == u and turn.wait == pytest.approx(math.exp(float(whole.double().sum())), rel=1e-4)


@pytest.mark.parametrize("which", ["tiny", "merging"])
def test_tools_are_the_sum_over_their_beginnings(which: str, request: pytest.FixtureRequest) -> None:
    """Against one plain call of the engine per beginning; forced answers start with the most probable."""
    engine: Engine = request.getfixturevalue(which)
    prompts, dialogue = (
        encoder(engine, NESTED),
        CORPUS.dialogues[0].model_copy(update={"tools": (), "references": ()}),
    )
    chat = prompts.chat
    known = answers(chat, NESTED)
    scored = next(iter(score(engine, prompts, [dialogue])))
    turn, openings = scored.probabilities.turns[1], scored.openings
    prompt = prompts.prompt(dialogue, turn.turn)
    for tool in NESTED.tools:
        expected: dict[tuple[int, ...], float] = {}
        for path in known.beginnings[Status.READY, tool.name]:
            text = chat.decode(path)
            opening = render((Action(name=tool.name, status=Status.READY),))[:-2]
            assert text.startswith(opening) and not chat.decode(path[:-1]).startswith(opening)
            logps = engine.logprobs([[*prompt, *path]], [(len(prompt), len(prompt) + len(path))])[0]
            expected[path] = math.exp(float(logps.double().sum()))
        assert turn.tools[tool.name] == pytest.approx(sum(expected.values()), rel=1e-4)
        assert openings[turn.turn, tool.name] == max(expected, key=lambda path: expected[path])
        assert which == "tiny" or len(expected) > 1 or not tool.parameters


@pytest.mark.parametrize("which", ["tiny", "merging", "qwen"])
def test_beginnings_cover_every_canonical_answer_and_none_begins_another(
    which: str, request: pytest.FixtureRequest
) -> None:
    if which == "qwen":
        tokenizer = load_tokenizer(request.getfixturevalue("data_dir") / "qwen2.5-tokenizer")
        if tokenizer is None:
            pytest.skip("no Qwen2.5 tokenizer among the data")
        chat = ChatFormat(tokenizer)
    else:
        chat = encoder(request.getfixturevalue(which)).chat
    known = answers(chat, NESTED)
    paths = [known.wait, *(p for several in known.beginnings.values() for p in several)]
    assert len(set(paths)) == len(paths)
    assert not any(a != b and b[: len(a)] == a for a in paths for b in paths)
    for status in (Status.READY, Status.PENDING):
        for name, params in (
            ("book", {}),
            ("book", {"day": "x"}),
            ("book", {"READ": "x"}),
            ("book_table", {}),
            ('b"k', {"day": "y"}),
        ):
            for more in ((), (Action(name="book", params={"day": "later"}, status=Status.READY),)):
                ids = tuple(
                    chat.encode_answer(render((Action(name=name, params=params, status=status), *more)))
                )
                starts = [
                    key for key, several in known.beginnings.items() for p in several if ids[: len(p)] == p
                ]
                assert starts == [(status, name)]


def test_the_distribution_adds_up_and_sampling_agrees(engine: Engine) -> None:
    prompts, dialogue = encoder(engine), CORPUS.dialogues[1]
    probabilities = next(score(engine, prompts, [dialogue])).probabilities
    for turn in probabilities.turns:
        assert 0 <= turn.wait + sum(turn.tools.values()) + sum(turn.pending.values()) <= 1 + 1e-6
        assert set(turn.tools) == set(turn.pending) == set(dialogue.tools or CORPUS.catalog.names)
    turn = max(probabilities.turns, key=lambda t: min(t.wait, 1 - t.wait))
    drawn = engine.sample([prompts.prompt(dialogue, turn.turn)], Sampling(n=256, max_tokens=20, seed=3))[
        0
    ].samples
    wait = prompts.answer(())
    share = sum(s.token_ids == wait for s in drawn) / len(drawn)
    assert share == pytest.approx(
        turn.wait, abs=4 * math.sqrt(turn.wait * (1 - turn.wait) / len(drawn)) + 1e-3
    )
    for tool, p in turn.tools.items():
        opening = render((Action(name=tool, status=Status.READY),))[:-2]
        share = sum(s.text.startswith(opening) for s in drawn) / len(drawn)
        assert share == pytest.approx(p, abs=4 * math.sqrt(max(p * (1 - p), 0.01) / len(drawn)))
    assert max(turn.tools.values()) > 0.03


def test_one_tree_a_dialogue(engine: Engine) -> None:
    """Rows computed: the trunk, each decision's board and the answers' inner tokens once, not per tool."""
    prompts, dialogue = encoder(engine), CORPUS.dialogues[0]
    before = engine.counters()["rows_computed"]
    list(score(engine, prompts, [dialogue]))
    rows = engine.counters()["rows_computed"] - before
    sequences = set()
    known = answers(prompts.chat, prompts.catalog.offered_in(dialogue))
    for _, prompt in prompts.prompts(dialogue):
        for path, _ in known.edges:
            whole = (*prompt, *path)
            sequences.update(whole[:k] for k in range(1, len(whole) + 1))
    assert rows == len(sequences)
    flat = sum(len(p) * len(known.edges) for _, p in prompts.prompts(dialogue))
    assert rows < flat / 20


def test_a_board_changes_what_is_asked(engine: Engine) -> None:
    prompts, dialogue = encoder(engine), CORPUS.dialogues[0]
    action = Action(
        name=dialogue.references[0].name, params=dialogue.references[0].params, status=Status.READY
    )
    after = EMPTY.after(dialogue, dialogue.decision_turns[0], [action])
    plain, shown = (
        [scored.probabilities for scored in score(engine, prompts, [dialogue], b)]
        for b in (lambda d, u: EMPTY, lambda d, u: after)
    )
    assert plain[0].turns[-1].wait != shown[0].turns[-1].wait


def test_a_table_holds_the_greedy_values_of_what_is_probable(engine: Engine) -> None:
    prompts, dialogue = encoder(engine), CORPUS.dialogues[1]
    told: list[tuple[int, int]] = []
    table, probabilities = score_table(
        engine,
        prompts,
        [dialogue],
        floor=1e-2,
        max_tokens=44,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)] and len(probabilities) == 1
    wanted = {(t.turn, tool) for t in probabilities[0].turns for tool, p in t.tools.items() if p >= 1e-2}
    assert {(r.turn, r.tool) for r in table.rows} == wanted and wanted
    scored = next(iter(score(engine, prompts, [dialogue])))
    for row in table.rows[:3]:
        opening = scored.openings[row.turn, row.tool]
        greedy = Sampling(temperature=0.0, max_tokens=44 - len(opening))
        drawn = engine.sample([[*prompts.prompt(dialogue, row.turn), *opening]], greedy)[0].samples[0]
        read = parse(prompts.chat.decode([*opening, *drawn.token_ids])).actions
        assert row.values == next((a.params for a in read if a.name == row.tool), {})
    assert ScoreTable.model_validate_json(table.model_dump_json()) == table
    assert score_table(engine, prompts, [dialogue], floor=1.1)[0].rows == ()


def test_what_has_no_probability_is_refused(engine: Engine) -> None:
    with pytest.raises(ProbabilityError, match="'reasoning' a thought comes first"):
        next(score(engine, encoder(engine, mode="reasoning"), CORPUS.dialogues))
    chat = encoder(engine).chat

    class Lossy:
        encode_continuation = staticmethod(chat.encode_continuation)
        encode_answer = staticmethod(chat.encode_answer)
        decode = staticmethod(lambda ids: chat.decode(ids).upper())

    with pytest.raises(ProbabilityError, match="tool 'book': the tokenizer does not give its name back"):
        module.answers(Lossy(), NESTED)  # type: ignore[arg-type]
