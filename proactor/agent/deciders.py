"""How a decision is made: by the model's own answer, as `proactor evaluate` plays, or by thresholds on the
probabilities of its tools, as `proactor calibrate` replays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from proactor.agent.conversation import Conversation
from proactor.agent.draft import Draft, Proposal
from proactor.agent.errors import AgentError
from proactor.calibration.live import complete, score_turn
from proactor.calibration.probabilities import Answers, answers
from proactor.calibration.thresholds import Thresholds
from proactor.config import RunConfig
from proactor.dialogue import Action, Dialogue, Status
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.decisions import noise_key
from proactor.dialogue.parse import parse
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine
from proactor.evaluation.play import answer_sampling

NEAR = 0.1
"""Probability from which a tool is near [INFERRED]."""

ASKING = 0.5
"""Probability of PENDING from which an agent with thresholds asks for assent [INFERRED]."""


class Decider(Protocol):
    """Makes the draft of a decision after the user turn ``upto`` of a conversation."""

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        """Raises AgentError for a turn that alone exceeds the context."""
        ...

    def keep(self, conversation: Conversation, upto: int, draft: Draft, fired: tuple[Action, ...]) -> None:
        """Put what was fired on the board."""
        ...


@dataclass
class Prompts:
    """The prompts of live conversations. From any thread.

    A prompt leaves room for an answer of ``max_tokens``. Where it does not fit, the older half of the turns
    that are read is dropped, again until it fits: so the pages of what stays serve many turns. A turn that
    does not fit alone is left out itself, and what was said before it stays.
    """

    encoder: PromptEncoder
    context: int
    max_tokens: int
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fitting(
        self, conversation: Conversation, upto: int, encode: Callable[[Dialogue, int], list[int]]
    ) -> tuple[Dialogue, list[int]]:
        """(what is read, ids) of the prompt after turn ``upto``. Raises AgentError as `Decider.draft`."""
        first = conversation.first
        while True:
            dialogue = conversation.dialogue(upto)
            with self._lock:
                ids = encode(dialogue, len(dialogue.turns))
            if len(ids) + self.max_tokens <= self.context:
                return dialogue, ids
            if not conversation.drop(upto):
                conversation.first = first
                conversation.too_long.add(upto)
                raise AgentError(
                    f"conversation {conversation.id!r}: turn {upto} needs {len(ids)} tokens with the tools "
                    f"and {self.max_tokens} for an answer, the context has {self.context}"
                )

    def forget(self, conversation_id: str) -> None:
        """Let go of a conversation."""
        with self._lock:
            self.encoder.forget(conversation_id)


class Greedy:
    """The model's own answer on its own board: the actions of `evaluate`, decision by decision."""

    def __init__(self, engine: Engine, prompts: Prompts, config: RunConfig) -> None:
        self.engine, self.prompts = engine, prompts
        options = config.eval
        self._sampling = answer_sampling(options.max_tokens, options.temperature, config.seed)

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        """All actions of the answer."""
        own, encoder = conversation.own, self.prompts.encoder
        dialogue, prompt = self.prompts.fitting(conversation, upto, lambda d, u: own.prompt(encoder, d, u))
        key = noise_key(dialogue, len(dialogue.turns))  # with the config's seed: the noise of `evaluate`
        async with self.engine.session() as session:
            sample = await session.sample(prompt, self._sampling, key=key)
        proposals = tuple(map(Proposal, parse(sample.text).actions))
        return Draft(proposals, answer=sample.text, tokens=len(sample.token_ids))

    def keep(self, conversation: Conversation, upto: int, draft: Draft, fired: tuple[Action, ...]) -> None:
        """As `evaluate` keeps them, and the graph of an answer."""
        dialogue, encoder = conversation.dialogue(upto), self.prompts.encoder
        conversation.own.take(encoder, dialogue, len(dialogue.turns), draft.answer, lambda _: fired)


class Thresholded:
    """Each tool at or above its threshold fires, the most probable first; the prompt shows an empty board."""

    def __init__(self, engine: Engine, prompts: Prompts, thresholds: Thresholds, catalog: Catalog) -> None:
        self.engine, self.prompts, self.thresholds = engine, prompts, thresholds
        self.catalog = catalog
        self._answers: dict[tuple[str, ...], Answers] = {}
        self._floor = min(NEAR, thresholds.default, *thresholds.tools.values())
        self._known(Dialogue(id="-", turns=({"index": 1, "speaker": "user", "text": ""},)))

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        """The tools at their threshold, those to ask about, and the nearest of the others."""
        encoder, chat = self.prompts.encoder, self.prompts.encoder.chat
        dialogue, prompt = self.prompts.fitting(conversation, upto, encoder.prompt)
        scores = await score_turn(self.engine, prompt, self._known(dialogue), self._floor)
        admitted = {
            (status, tool)
            for (status, tool), p in scores.actions.items()
            if (self.thresholds.admits(tool, p) if status is Status.READY else self._asks(tool, p))
        }
        fires = {tool for status, tool in admitted if status is Status.READY}
        admitted -= {(Status.PENDING, tool) for tool in fires}
        others = [k for k in scores.actions if k not in admitted and k[1] not in fires]
        nearest = max(others, key=scores.actions.__getitem__, default=None)
        chosen = sorted(admitted, key=lambda k: (-scores.actions[k], k[1]))
        chosen += [] if nearest is None else [nearest]
        openings = {key: scores.openings[key] for key in chosen}
        values, drawn = await complete(self.engine, chat, prompt, openings, self.prompts.max_tokens)
        proposals = []
        for status, tool in chosen:
            action = Action(name=tool, params=dict(values[status, tool] or {}), status=status)
            before = conversation.standing(action)
            proposals.append(
                Proposal(
                    action,
                    scores.actions[status, tool],
                    self.thresholds.of(tool) if status is Status.READY else ASKING,
                    near=(status, tool) not in admitted or (before is not None and before.kind == "fire"),
                )
            )
        return Draft(tuple(proposals), scores.wait, tokens=scores.nodes + drawn)

    def keep(self, conversation: Conversation, upto: int, draft: Draft, fired: tuple[Action, ...]) -> None:
        """As they were fired."""
        dialogue, own = conversation.dialogue(upto), conversation.own
        own.board = own.board.after(dialogue, len(dialogue.turns), fired)

    def _asks(self, tool: str, probability: float) -> bool:
        return probability >= ASKING and self.catalog[tool].confirm

    def _known(self, dialogue: Dialogue) -> Answers:
        known = self._answers.get(dialogue.tools)
        if known is None:
            known = answers(self.prompts.encoder.chat, self.catalog.offered_in(dialogue))
            self._answers[dialogue.tools] = known
        return known
