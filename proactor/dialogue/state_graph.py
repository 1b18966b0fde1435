"""The action state graph that an agent keeps for itself: the open actions, their status, and what each lacks.

That the agent keeps such a graph beside its reasoning is [NOTES, methods 1.9]; the format is ours [INFERRED].
Every action is a small state machine, PENDING -> READY -> TRIGGERED. The graph lists the status of each in
the form of an answer, with null for a parameter that is still missing:

    <think>book lacks time.</think><graph>[{"PENDING":"book","day":"Monday","time":null}]</graph>[]

Triggered actions are on the action board and need not be repeated. The graph of one output is shown again
below the board at the next decision of the same dialogue, in its canonical form.

Cost: candidates write different graphs, so the prompt of turn u differs between candidates. A graph written
into the dialogue would split everything after it: each of K candidates would be a token tree of its own.
Below the board it splits only the leaf of the prompt: the trunk of L tokens (system and dialogue) stays
shared by all candidates and turns. With a board of b tokens, an answer of a, thought and graph of t + g, and
the earlier graph of g, one pass over D decisions computes about

    plain                       L + D (b + K a)
    reasoning                   L + D (b + K (t + a))
    graph, in the leaf          L + D K (b + g + t + g + a)
    graph, a tree a candidate   K (L + D (b + t + g + a))

and the D decisions of a dialogue are sampled one after the other instead of together. Tokens computed in one
training pass relative to plain, K = 8, target outputs, every candidate's graph different (the worst case:
equal graphs share their leaf too):

                                        reasoning   graph, in the leaf   graph, a tree a candidate
    tiny model, synthetic dialogues        1.6              4.0                    7.4
    Qwen2.5's tokens, SGD                  1.4              4.2                    5.8
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.dialogue import Action, Status
from proactor.dialogue.parse import canonical_entry, dumps, key, parse_graph, split


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One action with its status and known values, and the names of its ``missing`` parameters."""

    action: Action
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StateGraph:
    """The nodes in the order written, one per action."""

    nodes: tuple[GraphNode, ...] = ()

    def render(self) -> str:
        """The canonical text, for prompts and ``<graph>`` blocks; "</" is escaped and cannot end a block."""
        return dumps(canonical_entry(n.action, n.missing) for n in self.nodes).replace("</", "<\\/")

    def thought(self) -> str:
        """The graph in words, for the thinking block that supervised training shows."""
        text = " ".join(_describe(node) for node in self.nodes)
        return text.replace("</", "<\\/") or "Nothing is open."

    def after(self, text: str) -> tuple[StateGraph, dict[str, int]]:
        """The graph that the output ``text`` wrote, and counts of what could not be read (reasons of
        `parse.Parsed`, and no_graph).

        Total. This graph stays where the output has no closed ``<graph>`` block, or an unreadable one.
        """
        written = split(text).graph
        if written is None:
            return self, {"no_graph": 1}
        graph, unread = read(written)
        return (self if unread and not graph.nodes else graph), unread


NO_GRAPH = StateGraph()


def read(text: str) -> tuple[StateGraph, dict[str, int]]:
    """The graph of a text, and counts of what could not be read. Total: any string gives a graph."""
    entries, unread = parse_graph(text)
    return StateGraph(_merge_nodes(GraphNode(action, missing) for action, missing in entries)), unread


def graph_of(actions: Iterable[Action], catalog: Catalog) -> StateGraph:
    """The graph of ``actions``. A PENDING action lacks the required parameters that have no value."""
    return StateGraph(
        _merge_nodes(GraphNode(a, _missing_parameters(a, catalog.get(a.name))) for a in actions)
    )


def _missing_parameters(action: Action, tool: Tool | None) -> tuple[str, ...]:
    if tool is None or action.status is not Status.PENDING:
        return ()
    return tuple(name for name in tool.required if name not in action.params)


def _merge_nodes(nodes: Iterable[GraphNode]) -> tuple[GraphNode, ...]:
    """Merge the nodes of one action (`parse.key`): the highest status, at the place of the first."""
    kept: dict[object, GraphNode] = {}
    for node in nodes:
        known = kept.setdefault(key(node.action), node)
        if node.action.status.rank > known.action.status.rank:
            kept[key(node.action)] = node
    return tuple(kept.values())


def _describe(node: GraphNode) -> str:
    if node.action.status is not Status.PENDING:
        return f"{node.action.name} is {node.action.status.value.lower()}."
    if node.missing:
        return f"{node.action.name} lacks {', '.join(node.missing)}."
    return f"{node.action.name} is open."
