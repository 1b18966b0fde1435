"""State graphs: the text that an agent keeps for itself, read back from whatever it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.dialogue import Action, Status
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import parse, split
from proactor.dialogue.prompt import PromptEncoder, PromptStyle, earlier_graph, target, target_text
from proactor.dialogue.state_graph import NO_GRAPH, GraphNode, StateGraph, graph_of, read
from proactor.engine import ChatFormat, Group, Sample, Tree
from proactor.engine.tokenizer import load_tokenizer
from proactor.sources import load
from tests.proactor.dialogue.test_prompt import BOOK
from tests.proactor.dialogues import pending, ready, users
from tests.proactor.runs import OPTIONS

CATALOG = Catalog(
    tools=(
        Tool(
            name="book",
            parameters=(
                Parameter(name="day"),
                Parameter(name="time"),
                Parameter(name="note", required=False),
            ),
        ),
    )
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda s: s == s.strip()
)
NODES = st.builds(
    lambda name, params, missing, status: GraphNode(
        Action(name=name, params=params, status=status), tuple(m for m in missing if m not in params)
    ),
    TEXT,
    st.dictionaries(
        TEXT | st.sampled_from(["READY", "status", "name", "params", "</graph>"]),
        TEXT | st.just("</graph>[]"),
        max_size=3,
    ),
    st.lists(TEXT | st.sampled_from(["pending", "args"]), max_size=2, unique=True),
    st.sampled_from(Status),
)


def graph(*nodes: GraphNode) -> StateGraph:
    return StateGraph(nodes)


@given(st.lists(NODES, max_size=4, unique_by=lambda n: n.action.name))
def test_a_graph_round_trips_and_never_ends_its_block(nodes: list[GraphNode]) -> None:
    written = graph(*nodes)
    output = f"<think>x</think><graph>{written.render()}</graph>" + '[{"READY":"book"}]'
    assert read(written.render()) == (written, {})
    assert NO_GRAPH.after(output) == (written, {})
    assert parse(output).actions == (ready("book"),) and parse(output).ok


@given(st.text() | st.text(alphabet='[]{}":,<>/graphPENDING null').map(lambda s: f"<graph>{s}</graph>[]"))
def test_reading_is_total(text: str) -> None:
    known = graph(GraphNode(pending("book"), ("day",)))
    after, unread = known.after(text)
    assert isinstance(after, StateGraph) and all(count > 0 for count in unread.values())
    if after == known and split(text).graph is None:
        assert unread == {"no_graph": 1}
    json.loads(read(text)[0].render())
    parse(text)


def test_what_is_written_replaces_the_graph_and_what_is_unreadable_does_not() -> None:
    known = graph(GraphNode(pending("book", day="Monday"), ("time",)))
    assert known.render() == '[{"PENDING":"book","day":"Monday","time":null}]'
    cases: dict[str, tuple[StateGraph, dict[str, int]]] = {
        "[]": (known, {"no_graph": 1}),
        "<graph>[]</graph>[]": (NO_GRAPH, {}),
        "<graph>soon</graph>[]": (known, {"no_json": 1}),
        '<graph>[{"PENDING":"book"},7]</graph>[]': (graph(GraphNode(pending("book"))), {"not_an_object": 1}),
        '<graph>[{"PENDING":"book"}': (known, {"no_graph": 1}),
        '<graph>[{"PENDING":"a"},{"TRIGGERED":"a"}]</graph>': (
            graph(GraphNode(Action(name="a", status=Status.TRIGGERED))),
            {},
        ),
        '<think>t</think>\n<graph>[{"name":"a","status":"pending","params":{"x":null}}]</graph>': (
            graph(GraphNode(pending("a"), ("x",))),
            {},
        ),
    }
    for output, expected in cases.items():
        assert known.after(output) == expected, output


def test_a_graph_is_no_answer() -> None:
    open_graph = parse('<think>t</think><graph>[{"READY":"book"}]')
    assert open_graph.actions == () and open_graph.unread == {"unclosed_graph": 1}
    closed = parse('<graph>[{"READY":"book"}]</graph> [{"PENDING":"call"}]')
    assert closed.actions == (pending("call"),) and closed.ok and not closed.repaired
    assert parse('<graph>[{"READY":"book"}]</graph>').unread == {"empty": 1}


def test_the_wanted_graph_says_what_is_missing_and_nothing_from_later() -> None:
    dialogue = users(7, BOOK)
    assert target_text(dialogue, 3, EMPTY, CATALOG, "graph", pending=False) == (
        '<think>book lacks time.</think><graph>[{"PENDING":"book","day":"Monday","time":null}]</graph>[]'
    )
    assert target_text(dialogue, 4, EMPTY, CATALOG, "reasoning") == (
        '<think>book is ready.</think>[{"READY":"book","day":"Monday","time":"9"}]'
    )
    assert target_text(dialogue, 1, EMPTY, CATALOG, "reasoning") == "<think>Nothing is open.</think>[]"
    assert target_text(dialogue, 4, EMPTY, CATALOG) == '[{"READY":"book","day":"Monday","time":"9"}]'
    assert (
        graph_of([pending("book", day="x", time="y"), pending("other")], CATALOG).thought()
        == "book is open. other is open."
    )
    for mode in ("reasoning", "graph"):
        for turn in dialogue.decision_turns:
            assert parse(target_text(dialogue, turn, EMPTY, CATALOG, mode)).actions == target(dialogue, turn)


def test_the_graph_shown_is_the_one_wanted_a_decision_before() -> None:
    dialogue = users(7, BOOK)
    assert earlier_graph(dialogue, 1, EMPTY, CATALOG) == NO_GRAPH
    for turn in range(2, 8):
        before = target_text(dialogue, turn - 1, EMPTY, CATALOG, "graph")
        assert NO_GRAPH.after(before) == (earlier_graph(dialogue, turn, EMPTY, CATALOG), {})
    fired = Board((ready("book").model_copy(update={"status": Status.TRIGGERED}),), {"b": Timing.ON_TIME})
    assert (
        earlier_graph(dialogue, 6, fired, CATALOG) == NO_GRAPH
    )  # it was logged at 4: at 5 it stood on the board
    assert earlier_graph(dialogue, 5, fired, CATALOG).nodes[0].action.status is Status.READY


@pytest.mark.parametrize("candidates", [8])
def test_a_graph_in_the_leaf_leaves_the_trunk_shared(tiny_model: Path, candidates: int) -> None:
    """The cost that the module states: rows of one training pass, every candidate with a graph of its own."""
    chat, corpus = ChatFormat(load_tokenizer(tiny_model)), load("synthetic", limit=12, **OPTIONS)
    rows = dict.fromkeys(("plain", "reasoning", "graph", "tree a candidate"), 0)
    for dialogue in corpus.dialogues:
        for mode in ("plain", "reasoning", "graph"):
            encoder = PromptEncoder(chat, corpus.catalog, PromptStyle(mode=mode))
            own = candidates if mode == "graph" else 1
            groups: list[Group] = []
            for turn in dialogue.decision_turns:
                answer = encoder.target_ids(dialogue, turn)
                for c in range(own):
                    node = GraphNode(pending(f"own{c}"))
                    prompt = encoder.prompt(
                        dialogue, turn, EMPTY, graph(node, *encoder.earlier_graph(dialogue, turn).nodes)
                    )
                    groups.append(
                        Group(prompt, [Sample(prompt, answer)] * (candidates // own), tree=dialogue.id)
                    )
            rows[mode] += Tree(groups).rows
            if mode == "graph":
                rows["tree a candidate"] += sum(Tree(groups[c::own]).rows for c in range(own))
    assert 1.3 < rows["reasoning"] / rows["plain"] < 2
    assert 3 < rows["graph"] / rows["plain"] < 5.5
    assert rows["tree a candidate"] > 1.5 * rows["graph"]
