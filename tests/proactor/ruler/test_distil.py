"""A small model taught what the rules say: its questions, its lessons, what it learns and how it is used."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from proactor.dialogue import Action, Status
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import parse, render
from proactor.engine import Engine
from proactor.rewards import load_reward
from proactor.ruler import EngineJudge, RuleJudge, Ruler, RulerError
from proactor.ruler.distil import StudentSetup, lessons, teach, teacher_scores, with_mutations
from proactor.ruler.judge import JudgeFailure
from proactor.ruler.mutations import mutations
from proactor.ruler.question import JudgeRequest
from proactor.ruler.rubric import CUSTOM
from tests.engine.engines import adapter, load, write_text_folder
from tests.proactor.dialogues import ready
from tests.proactor.ruler.judged import FULL, PART, group, run

SHORT = StudentSetup("Be right, be in time.", "{rubric}")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = write_text_folder(tmp_path_factory.mktemp("distil"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    engine = load(folder, stir=False, kv_tokens=8192, page_size=16)
    yield engine
    engine.release()


def spoilt(turn: int, board: Board = EMPTY) -> dict[str, str]:
    one = group(turn=turn, board=board)
    return mutations(one.dialogue, turn, board, one.tools, random.Random(0))


def worth(candidates: Candidates) -> list[float]:
    scores = run(Ruler(RuleJudge(), "custom").score(candidates))
    assert scores is not None
    return [parts["ruler"] for parts in scores]


# --- spoilt answers ---


def test_every_answer_made_can_be_read_and_what_was_spoilt_is_worth_less() -> None:
    seen: set[str] = set()
    for turn in group().dialogue.decision_turns:
        made = spoilt(turn)
        seen |= made.keys()
        assert all(parse(text).ok for text in made.values())
        scores = dict(zip(made, worth(group(*made.values(), turn=turn)), strict=True))
        for kind in ("wrong_value", "wrong_tool", "less", "more"):
            if kind in made:
                assert scores[kind] < scores["right"], (turn, kind)
    assert {"wait", "right", "early", "late", "wrong_value", "wrong_tool", "less", "more"} <= seen


def test_what_stands_on_the_board_comes_back_as_a_repeat_only_then() -> None:
    first = group().dialogue.references[0]
    done = Action(name=first.name, params=first.params, status=Status.TRIGGERED)
    board = Board((done,), {first.id: Timing.ON_TIME})
    (again,) = parse(spoilt(3, board)["repeat"]).actions
    assert (again.name, again.params, again.status) == (done.name, done.params, Status.READY)
    assert "repeat" not in spoilt(3)


def test_a_mixed_group_holds_own_and_spoilt_answers_once_each_and_no_more_than_asked() -> None:
    one = group(FULL, FULL, "[]", PART)
    for seed in range(8):
        texts = with_mutations(one, 5, random.Random(seed)).texts
        assert len(texts) == len(set(texts)) <= 5
        assert set(texts) & {FULL, "[]", PART} and set(texts) - {FULL, "[]", PART}
    assert with_mutations(one, 5, random.Random(1)) == with_mutations(one, 5, random.Random(1))


# --- lessons ---


def test_a_lesson_is_the_question_the_judge_sends_and_the_verdict_the_rules_give(engine: Engine) -> None:
    """Each sample begins a verdict with one number, up to its first digit, which alone has loss."""
    asked, judge = StudentSetup("custom", "Grade."), EngineJudge(engine)
    one = group(FULL, PART, "[]")
    ((_, numbers),) = lessons(judge, asked, [one], seed=3)
    request = asked.request(one, seed=3)
    question = judge.prompt(request)
    assert engine.chat is not None
    said: dict[str, dict[str, float]] = {}
    for number in numbers:
        (sample,) = number.samples
        assert number.prompt_ids[: len(question)] == question and len(sample.token_ids) == 1
        begun = [*number.prompt_ids[len(question) :], *sample.token_ids]
        (entry,) = json.loads(engine.chat.tokenizer.decode(begun) + "}]}")["scores"]
        (message,) = entry.pop("trajectory")
        assert message["content"] == one.texts[request.shown[int(entry["id"]) - 1]]
        said.setdefault(entry.pop("id"), {}).update(entry)
    rules = run(Ruler(RuleJudge(), "custom").score(one))
    assert rules is not None
    for id, index in zip(request.ids, request.shown, strict=True):
        for name, value in rules[index].items():
            told = said[id]["score" if name == "ruler" else name]
            assert told == min(0.9, math.floor(value * 10 + 1e-9) / 10), (index, name)
    assert len(numbers) == 3 * 4


def test_what_is_asked_in_training_is_what_a_ruler_with_these_options_asks() -> None:
    reward = load_reward("custom_ruler", SHORT.options("some/folder"))
    ruler = reward.terms[0].component.ruler
    sent: list[JudgeRequest] = []

    class Listener(RuleJudge):
        async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
            sent.extend(requests)
            return await super().reply([replace(r, rubric=CUSTOM) for r in requests])

    one = group(FULL, PART, "[]")
    ruler.judge = Listener()
    run(ruler.score(one))
    assert sent[0].messages == SHORT.request(one, seed=0).messages
    assert sent[0].rubric.parts == ()


def test_questions_that_do_not_fit_are_left_out_and_the_others_keep_their_lesson(engine: Engine) -> None:
    long = group(*(render([ready("book", dest="x" * 150 + str(i))]) for i in range(20)))
    kept = list(lessons(EngineJudge(engine), SHORT, [long, group(FULL, "[]")]))
    assert [g.texts for g, _ in kept] == [(FULL, "[]")]


def test_a_student_cannot_be_asked_for_what_its_teacher_does_not_give() -> None:
    with pytest.raises(RulerError, match="general gives no timing"):
        StudentSetup(rubric="custom", teacher="general")
    assert [s.value for s in teacher_scores(SHORT, [SHORT.request(group("[]"))])[0].values()] == worth(
        group("[]")
    )


# --- learning ---


def test_the_student_learns_what_the_rules_say_and_its_adapter_grades_for_another_policy(
    engine: Engine, tmp_path: Path
) -> None:
    """Answers that nobody asked for are worth nothing; taught that, the judge says so of one it has not seen,
    and says it by its adapter alone.
    """
    fresh = engine.state_dict()
    wrong = [render([ready("email", to=to)]) for to in "abcd"]
    drawn, unseen = [group(*wrong[:2], turn=1), group(*wrong[1:3], turn=1)], group(wrong[3], wrong[0], turn=1)
    assert worth(unseen) == [0.0, 0.0]
    told = teach(engine, SHORT, drawn, seconds=60, steps=14, rate=3e-2, spoilt=0.0)
    assert (told.steps, told.too_long) == (14, 0) and told.last() < 0.8 * told.losses[0][1]
    engine.save_adapter(tmp_path / "judge")
    engine.load_state_dict(fresh)
    policy = adapter(engine).clone()
    before = run(SHORT.ruler(EngineJudge(engine)).score(unseen))
    ruler = load_reward("custom_ruler", SHORT.options(tmp_path / "judge")).terms[0].component.ruler
    ruler.bind(engine)
    after = run(ruler.score(unseen))
    assert after is not None and before is not None
    assert max(p["ruler"] for p in after) < min(p["ruler"] for p in before) - 0.05
    assert (adapter(engine) == policy).all()


def test_there_must_be_something_to_learn(engine: Engine) -> None:
    with pytest.raises(RulerError, match="no decisions"):
        teach(engine, SHORT, [], seconds=1)
    long = group(*(render([ready("book", dest="x" * 150 + str(i))]) for i in range(20)))
    with pytest.raises(RulerError, match="no group fits"):
        teach(engine, SHORT, [long], seconds=0.2, spoilt=0.0)
