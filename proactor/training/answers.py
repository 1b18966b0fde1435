"""The answers sampled at one decision point, parsed and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.decisions import Decision
from proactor.dialogue.parse import Parsed
from proactor.engine import Group, Sample


@dataclass(slots=True)
class Answer:
    """One sampled answer.

    ``parts``: the parts of its reward by name, including "reward"; empty where the reward dropped the group.
    ``unread_graph``: pieces of its state graph that could not be parsed, by reason.
    """

    sample: Sample
    parsed: Parsed
    parts: dict[str, float] = field(default_factory=dict)
    unread_graph: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class AnswerGroup:
    """The answers to ``decision``, in the order of ``group.samples``. The engine trains on ``group``."""

    decision: Decision
    group: Group
    answers: list[Answer]

    @property
    def dropped(self) -> bool:
        """Whether the reward gave the group no verdict, so that it leaves the batch."""
        return any(sample.reward is None for sample in self.group.samples)

    def set_rewards(self, scores: Sequence[dict[str, float]] | None) -> None:
        """Set each sample's reward and each answer's parts; None drops the group."""
        for i, answer in enumerate(self.answers):
            answer.parts = {} if scores is None else scores[i]
            answer.sample.reward = None if scores is None else scores[i]["reward"]


def read_answers(
    decision: Decision,
    group: Group,
    candidates: Candidates,
    unread_graphs: Sequence[Mapping[str, int]] | None = None,
) -> AnswerGroup:
    """The answers of ``group``, not yet scored; ``candidates`` holds its parsed texts."""
    graphs = unread_graphs or [{} for _ in group.samples]
    answers = [
        Answer(sample, parsed, unread_graph=graph)
        for sample, parsed, graph in zip(group.samples, candidates.parsed, graphs, strict=True)
    ]
    return AnswerGroup(decision, group, answers)
