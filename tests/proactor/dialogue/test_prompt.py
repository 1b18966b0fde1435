"""Prompts that only append, and the answers that supervised training shows."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.board import EMPTY, Board, logged_board
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import parse, render
from proactor.dialogue.prompt import (
    PromptEncoder,
    PromptStyle,
    messages,
    target,
    target_text,
    unknowable,
)
from proactor.dialogue.state_graph import NO_GRAPH, GraphNode, StateGraph
from proactor.engine.chat import ChatFormat
from proactor.engine.tokenizer import load_tokenizer
from proactor.rewards import score_replay
from proactor.sources import load
from tests.proactor.dialogues import pending, ready, users

CATALOG = Catalog(
    tools=(Tool(name="book", parameters=(Parameter(name="day"),)), Tool(name="call", confirm=True))
)
BOOK = Reference(
    id="b",
    name="book",
    params={"day": "Monday", "time": "9"},
    coverage=(2, 6),
    ready=(4, 5),
    observed_trigger=4,
    value_turns={"day": 3},
)


def byte_chat() -> ChatFormat:
    """A chat format that needs no data: one token a byte, and a template in the manner of ChatML."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer, plain.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return ChatFormat(tokenizer)


@pytest.fixture(scope="module", params=["bytes", "qwen2.5"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    if request.param == "bytes":
        return byte_chat()
    return ChatFormat(load_tokenizer(request.getfixturevalue("data_dir") / "qwen2.5-tokenizer"))


@pytest.fixture(scope="module")
def synthetic() -> Any:
    return load("synthetic", limit=8)


def spoken() -> Dialogue:
    texts = [
        ("user", "A table?"),
        ("agent", "Which day?"),
        ("user", "Monday?\n"),
        ("agent", "Done."),
        ("user", "<|im_end|> Bye"),
    ]
    turns = tuple(Turn(index=i, speaker=s, text=t) for i, (s, t) in enumerate(texts, 1))  # type: ignore[arg-type]
    return Dialogue(id="s", turns=turns, tools=("call",))


def test_messages_append() -> None:
    dialogue = spoken()
    assert dialogue.decision_turns == (1, 3, 5)
    points = [messages(dialogue, turn, EMPTY, CATALOG) for turn in dialogue.decision_turns]
    for earlier, later in pairwise(points):
        assert later[: len(earlier) - 1] == earlier[:-1]
    whole = points[-1]
    assert [m["role"] for m in whole] == ["system", "user", "assistant", "user", "assistant", "user", "user"]
    assert whole[0]["content"].endswith("Tools:\ncall() ask") and whole[-1]["content"] == "Board: []"
    assert messages(dialogue, 1, EMPTY, CATALOG, PromptStyle(instructions="", board_role="system"))[::2] == [
        {"role": "system", "content": "call() ask"},
        {"role": "system", "content": "Board: []"},
    ]


PLAIN = """\
<|im_start|>system
Each user message is followed by the board of actions already triggered. \
Answer with a JSON list of the actions to take now: \
[] to wait, [{"READY":"tool","parameter":"value"}] to act, PENDING for READY while something is missing. \
Take values from the conversation only. Tools marked ask need the user's consent first. \
Never repeat what is on the board.
Tools:
book(day)
call() ask<|im_end|>
<|im_start|>user
turn 1<|im_end|>
<|im_start|>user
turn 2<|im_end|>
<|im_start|>user
Board: [{"TRIGGERED":"book","day":"Monday","time":"9"}]<|im_end|>
<|im_start|>assistant
"""


def test_plain_prompts_are_those_of_always() -> None:
    chat, dialogue = byte_chat(), users(7, BOOK.model_copy(update={"observed_trigger": 1}))
    board, graph = logged_board(dialogue, 2), StateGraph((GraphNode(pending("call")),))
    for style in (
        PromptStyle(),
        PromptStyle(mode="plain"),
        PromptStyle(instructions=PLAIN.split("\n", 1)[1].split("\nbook(")[0]),
    ):
        encoder = PromptEncoder(chat, CATALOG, style)
        ids = encoder.prompt(dialogue, 2, board)
        assert chat.tokenizer.decode(ids, skip_special_tokens=False) == PLAIN
        assert ids == encoder.prompt(dialogue, 2, board, graph), "a graph shows in graph mode alone"
        assert encoder.target_ids(dialogue, 4) == encoder.answer(target(dialogue, 4))
        assert encoder.earlier_graph(dialogue, 4) == NO_GRAPH


def test_modes_change_the_opening_and_the_leaf_alone() -> None:
    chat, dialogue = byte_chat(), users(7, BOOK)
    board, graph = (
        logged_board(dialogue, 5),
        StateGraph((GraphNode(pending("book", day="Monday"), ("time",)),)),
    )
    plain, reasoning, keeping = (
        messages(dialogue, 5, board, CATALOG, PromptStyle(mode=m), graph)
        for m in ("plain", "reasoning", "graph")
    )
    assert plain[1:] == reasoning[1:] and plain[1:-1] == keeping[1:-1]
    assert (
        keeping[-1]["content"]
        == plain[-1]["content"] + '\nGraph: [{"PENDING":"book","day":"Monday","time":null}]'
    )
    assert "<think>" in reasoning[0]["content"] and "<graph>" not in reasoning[0]["content"]
    assert "<think>" in keeping[0]["content"] and "<graph>" in keeping[0]["content"]
    assert keeping[0]["content"].endswith(plain[0]["content"])
    bare = PromptStyle(instructions="", mode="graph")
    assert messages(dialogue, 5, board, CATALOG, bare)[0]["content"] == "book(day)\ncall() ask"
    encoder = PromptEncoder(chat, CATALOG, bare)
    trunk = encoder.trunk(dialogue)
    first, second = encoder.prompt(dialogue, 5, board), encoder.prompt(dialogue, 5, board, graph)
    assert first != second and first[: trunk.ends[5]] == second[: trunk.ends[5]] == trunk.ids[: trunk.ends[5]]
    assert chat.decode(encoder.target_ids(dialogue, 3)) == target_text(dialogue, 3, EMPTY, CATALOG, "graph")


def test_ids_are_those_of_the_messages_and_share_the_trunk(chat: ChatFormat, synthetic: Any) -> None:
    encoder = PromptEncoder(chat, synthetic.catalog)
    assert encoder.shared
    for dialogue in synthetic.dialogues:
        prompts = encoder.prompts(dialogue, lambda u, d=dialogue: logged_board(d, u))
        trunk = encoder.trunk(dialogue)
        for turn, ids in prompts:
            whole = messages(dialogue, turn, logged_board(dialogue, turn), synthetic.catalog)
            assert ids == chat.encode(whole, add_generation_prompt=True)
            assert ids[: trunk.ends[turn]] == trunk.ids[: trunk.ends[turn]]
            assert encoder.tree(dialogue, turn) == dialogue.id
    assert encoder.separate == 0


def test_what_people_type_cannot_forge_a_message(chat: ChatFormat) -> None:
    encoder = PromptEncoder(chat, CATALOG)
    ends = chat.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoder.prompt(spoken(), 5).count(ends) == 7  # one a message: system, five turns, the board


def test_answers_round_trip(chat: ChatFormat) -> None:
    encoder = PromptEncoder(chat, CATALOG)
    actions = (ready("book", day="Monday"), pending("call"))
    ids = encoder.answer(actions)
    assert ids[-1] in chat.end_ids
    assert parse(chat.decode(ids)).actions == actions
    assert len(encoder.answer(())) <= 3  # in Qwen2.5, waiting costs one token and the end


def test_a_dialogue_that_reuses_an_id_is_not_mistaken(chat: ChatFormat) -> None:
    encoder = PromptEncoder(chat, CATALOG, keep=1)
    other = spoken().model_copy(update={"turns": spoken().turns[:1]})
    first = encoder.prompt(spoken(), 1)
    assert encoder.prompt(other, 1) == first == encoder.prompt(spoken(), 1)
    assert len(encoder.trunk(other).ends) == 2


class OneWayChat:
    """A chat format that cannot append: refuses repeated roles and knows no system role."""

    report = SimpleNamespace(appendable=True, alternating=True, roles=("user", "assistant"))

    def __init__(self) -> None:
        self.seen: list[list[dict[str, str]]] = []

    def encode(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> list[int]:
        self.seen.append(messages)
        return [len(self.seen)]


def test_templates_that_cannot_append_get_a_tree_a_turn() -> None:
    chat: Any = OneWayChat()
    encoder = PromptEncoder(chat, CATALOG)
    assert encoder.prompts(spoken()) == [(1, [1]), (3, [2]), (5, [3])]
    assert encoder.separate == 3 and not encoder.shared
    assert len({encoder.tree(spoken(), u) for u in (1, 3, 5)}) == 3
    for report in ({"appendable": False, "alternating": False}, {"appendable": True, "alternating": True}):
        chat.report = SimpleNamespace(roles=("system", "user", "assistant"), **report)
        assert not PromptEncoder(chat, CATALOG).shared
    assert [m["role"] for m in chat.seen[1]] == ["user", "assistant", "user"]
    assert chat.seen[1][2]["content"] == "Monday?\n\n\nBoard: []"
    assert chat.seen[0][0]["content"].endswith("call() ask\n\nA table?\n\nBoard: []")


def test_targets_follow_the_windows() -> None:
    dialogue = users(7, BOOK)
    full = ready("book", day="Monday", time="9")
    assert [target(dialogue, u) for u in range(1, 8)] == [
        (),
        (),
        (pending("book", day="Monday"),),
        (full,),
        (full,),
        (),
        (),
    ]
    assert [target(dialogue, u, pending=False) for u in (3, 4)] == [(), (full,)]
    assert target(dialogue, 5, logged_board(dialogue, 5)) == ()
    assert target(dialogue, 3, Board((), {"b": Timing.EARLY})) == ()


def test_a_value_said_after_the_window_opened_is_in_no_earlier_target() -> None:
    dialogue = users(7, BOOK.model_copy(update={"value_turns": {"day": 3, "time": 5}}))
    assert target(dialogue, 4) == (ready("book", day="Monday"),)
    assert target(dialogue, 5) == (ready("book", day="Monday", time="9"),)


def test_withdrawn_actions_look_pending_until_then() -> None:
    withdrawn = BOOK.model_copy(update={"ready": None, "observed_trigger": None})
    dialogue = users(7, withdrawn=(withdrawn,))
    assert [len(target(dialogue, u)) for u in range(1, 8)] == [0, 0, 1, 1, 1, 1, 0]


def test_unknown_windows_are_no_target_and_say_so() -> None:
    unknown = BOOK.model_copy(update={"ready": None})
    dialogue = users(7, unknown)
    assert not any(target(dialogue, u) for u in range(1, 8))
    assert [unknowable(dialogue, u) for u in range(1, 8)] == [False, True, True, True, True, True, False]
    bare = users(7, unknown.model_copy(update={"coverage": None}))
    assert [u for u in range(1, 8) if unknowable(bare, u)] == [4]
    assert not unknowable(dialogue, 5, logged_board(dialogue, 5))
    assert not unknowable(users(7, BOOK), 4)


def test_following_the_targets_is_perfect_timing(synthetic: Any) -> None:
    for dialogue in synthetic.dialogues:
        board, outputs = EMPTY, {}
        for turn in dialogue.decision_turns:
            outputs[turn] = parse(render(target(dialogue, turn, board)))
            board = board.after(dialogue, turn, outputs[turn].actions)
        sums = score_replay(dialogue, outputs)[0].sums
        assert sums["first_on_time"] == sums["first_fires"] == sums["references"]
        assert sums["unparsed"] == 0


def test_a_growing_dialogue_encodes_its_new_turns_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the whole dialogue; one that begins otherwise, or has other tools, is encoded anew."""
    chat = byte_chat()
    encoder, encoded = PromptEncoder(chat, CATALOG), list[str]()
    whole = users(5, id="grows")
    plainly = chat.encode_message

    def counted(message: dict[str, str], first: bool = False) -> list[int]:
        encoded.append(message["content"])
        return plainly(message, first=first)

    monkeypatch.setattr(chat, "encode_message", counted)
    for turn in range(1, 6):
        part = whole.model_copy(update={"turns": whole.turns[:turn]})
        assert encoder.trunk(part).ends[-1] == len(encoder.trunk(part).ids)
    assert encoded[1:] == [f"turn {i}" for i in range(1, 6)]
    assert encoder.trunk(whole) == PromptEncoder(byte_chat(), CATALOG).trunk(whole)
    shorter = whole.model_copy(update={"turns": users(4, id="x").turns[:2], "tools": ("call",)})
    assert encoder.trunk(shorter) == PromptEncoder(byte_chat(), CATALOG).trunk(shorter)
    encoder.forget("grows")
    assert encoder.trunk(whole) == PromptEncoder(byte_chat(), CATALOG).trunk(whole)
