"""`Agent`: a trained run that watches live conversations and says what to do now.

agent = Agent.load("runs/support")
decision = agent.observe("chat-1", {"speaker": "user", "text": "Where is order 48213?"})
for act in decision.fires:
    agent.result("chat-1", run_tool(act.name, act.params), act=act.id)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from proactor import __version__
from proactor.agent.conversation import Conversation, Fate
from proactor.agent.conversations import Conversations
from proactor.agent.deciders import Decider, Greedy, Prompts, Thresholded
from proactor.agent.draft import settle
from proactor.agent.errors import AgentError
from proactor.agent.log import DecisionLog
from proactor.agent.reasons import reason_of
from proactor.agent.run_folder import RunFolder
from proactor.config_base import ConfigError
from proactor.dialogue import Turn
from proactor.dialogue.agent_log import Answered, Decided, Decision, Started
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine
from proactor.event_loop import run_to_end
from proactor.progress import Progress, Quiet
from proactor.training.corpora import prompt_style
from proactor.training.loading import load_engine

LOG = "decisions.jsonl"


class Agent:
    """Made by `Agent.load`. Any number of threads and event loops may call it, on any conversations.

    Decisions of one conversation are made one after the other, in the order of its turns; those of several at
    once, by the same steps of the engine. ``conversations``: the open ones. ``counters``: conversations,
    turns, decisions, fires, asks, refused (what was given and could not be used), dropped_turns (no longer
    read), left_out (no turns), closed_idle, answer_tokens (drawn or scored).
    """

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        run: RunFolder,
        *,
        log: str | Path | None = None,
        guard: bool = True,
    ) -> None:
        self.engine, self.encoder, self.run, self.guard = engine, encoder, run, guard
        self.catalog, self.thresholds = encoder.catalog, run.thresholds
        self.log = DecisionLog(log)
        self.counters: Counter[str] = Counter()
        self._prompts = Prompts(encoder, engine.context_length, run.config.eval.max_tokens)
        self._decider: Decider = (
            Greedy(engine, self._prompts, run.config)
            if run.thresholds is None
            else Thresholded(engine, self._prompts, run.thresholds, self.catalog)
        )
        self.conversations = Conversations(self.catalog, self.log, self.counters)
        self._lock = threading.Lock()  # of the conversations, their turns and actions; never held in a wait
        self.log.write(_started(run))

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        adapter: str = "best",
        thresholds: str | Path | None = None,
        greedy: bool = False,
        tools: str | Path | None = None,
        log: str | Path | None = LOG,
        guard: bool = True,
        overrides: Sequence[str] = (),
        ui: Progress | None = None,
    ) -> Agent:
        """The agent of a run's folder, with its model, its ``adapter`` (start, best, last, none or a folder)
        and the thresholds of `proactor calibrate`, if it has any.

        ``thresholds``: a file with others. ``greedy``: without any, by the model's own answers. ``tools``:
        definitions that must be those the run was trained with. ``log``: a file for all that happens, in the
        run's folder unless it has one of its own; None writes none. ``guard``: see `settle`. ``overrides``:
        of the config, as ``engine.kv_tokens=65536``.

        Raises ProactorError, one line, for a folder that is no run, and whatever of it cannot be used.
        """
        if greedy and thresholds is not None:
            raise AgentError(f"thresholds {thresholds}: a greedy agent uses none")
        folder = RunFolder.read(run, adapter, thresholds, tuple(overrides), greedy=greedy)
        if tools is not None:
            folder.check_tools(tools)
        prompt_style(folder.config, folder.catalog)  # what it refuses is known before the model is loaded
        engine = load_engine(folder.config, ui or Quiet())
        if folder.adapter is not None:
            engine.load_adapter(folder.adapter)
        return cls.on(engine, folder, log=log, guard=guard)

    @classmethod
    def on(cls, engine: Engine, run: RunFolder, *, log: str | Path | None = LOG, guard: bool = True) -> Agent:
        """The agent of a run on an engine that has its model and adapter; ``log``, ``guard`` as `load`.

        Raises ConfigError for a model without a tokenizer.
        """
        if engine.chat is None:
            raise ConfigError(f"model {run.config.model}: the folder holds no tokenizer")
        if log is not None and Path(log).parent == Path():
            log = run.folder / log
        encoder = PromptEncoder(engine.chat, run.catalog, prompt_style(run.config, run.catalog))
        return cls(engine, encoder, run, log=log, guard=guard)

    # -- turns ---

    def open(self, conversation_id: str, tools: Sequence[str] = ()) -> None:
        """Begin a conversation with ``tools`` on offer (default: all); `observe` does it where need be.

        Raises AgentError for a tool that the run does not have, and for a conversation that is open.
        """
        with self._lock:
            self.conversations.open(conversation_id, tuple(tools))

    def observe(
        self,
        conversation_id: str,
        turn: Mapping[str, Any] | Turn | str,
        *,
        tools: Sequence[str] = (),
        number: int | None = None,
    ) -> Decision:
        """Hear a turn, and decide if it is the user's.

        ``turn``: text of the user's, or a mapping with ``speaker`` and ``text`` (or ``role`` and
        ``content``); speakers go by common names. ``tools``: as `open` has them. ``number``: of the turn
        (from 1); one that was heard before, with the same text, is answered with its decision once more, or
        decided now where that failed and it is still the latest.
        Raises AgentError, one line, for a turn that cannot be used; the log keeps it.
        """
        return run_to_end(self.observe_async(conversation_id, turn, tools=tools, number=number))

    async def observe_async(
        self,
        conversation_id: str,
        turn: Mapping[str, Any] | Turn | str,
        *,
        tools: Sequence[str] = (),
        number: int | None = None,
    ) -> Decision:
        """As `observe`, in any event loop."""
        with self._lock:
            conversation, heard, again = self.conversations.hear(conversation_id, turn, tuple(tools), number)
            if heard is None or heard.speaker != "user":
                why = "the agent spoke" if heard is not None else "no turn of the conversation"
                return Decision(
                    conversation=conversation_id,
                    turn=len(conversation.turns) if heard is None else heard.index,
                    reason=f"{why}: it decides after the user's turns",
                    decided=False,
                )
            latest = heard.index == len(conversation.turns)
            before, mine = conversation.take_number()
        try:
            if before is not None:
                await asyncio.shield(asyncio.wrap_future(before))
            with self._lock:
                self.conversations.check_open(conversation, heard.index)
                if again and (decided := self._decided(conversation, heard.index, latest)) is not None:
                    return decided
            return await self._decide(conversation, heard.index)
        finally:
            _resolve_after(before, mine)

    def _decided(self, conversation: Conversation, upto: int, latest: bool) -> Decision | None:
        """The decision of a turn that was heard before; None where it failed or was given up, and is to be
        made now: the turn was the ``latest`` when it came again, and it is read.
        """
        decision = conversation.decisions.get(upto)
        if decision is None and (not latest or upto in conversation.too_long):
            why = f"turn {upto} was heard before, and has no decision"
            raise self.conversations.refuse(conversation.id, why, {"turn": upto})
        return decision

    async def _decide(self, conversation: Conversation, upto: int) -> Decision:
        began, dropped = time.perf_counter(), conversation.dropped
        try:
            draft = await self._decider.draft(conversation, upto)
        except AgentError as error:
            with self._lock:
                self.counters["dropped_turns"] += conversation.dropped - dropped
                raise self.conversations.note(conversation.id, error, {"turn": upto}) from None
        offered = self.catalog.offered_in(conversation.dialogue(upto))
        budget = None if self.thresholds is None else self.thresholds.budget
        with self._lock:
            self.counters["answer_tokens"] += draft.tokens
            self.conversations.check_open(conversation, upto)
            settled = settle(conversation, upto, draft.proposals, offered, guard=self.guard)
            kinds = {act.kind for act in settled.acts}
            decision = Decision(
                conversation=conversation.id,
                turn=upto,
                kind="fire" if "fire" in kinds else "ask" if "ask" in kinds else "wait",
                actions=settled.acts,
                near=settled.near,
                reason=reason_of(settled, budget),
                wait=draft.wait,
                budget=budget,
                answer=draft.answer,
                dropped=conversation.dropped,
                seconds=time.perf_counter() - began,
            )
            self.log.write(Decided(conversation=conversation.id, decision=decision))
            self._decider.keep(conversation, upto, draft, settled.fired)
            conversation.add(decision)
            self.counters.update(
                decisions=1,
                fires=len(decision.fires),
                asks=len(decision.asks),
                dropped_turns=conversation.dropped - dropped,
            )
        return decision

    # -- what became of actions ---

    def confirm(self, conversation_id: str, act: str | None = None) -> Decision:
        """The user agreed to an action that was asked about (``act``: its id; default: the latest): fire it.

        Raises AgentError where nothing was asked.
        """
        with self._lock:
            conversation, asked = self.conversations.find_act(conversation_id, act, "confirm", (Fate.ASKED,))
            self.log.write(Answered(event="confirm", conversation=conversation_id, act=asked.id))
            conversation.trigger(asked)
            self.counters["fires"] += 1
        fired = asked.model_copy(update={"kind": "fire"})
        budget = None if self.thresholds is None else self.thresholds.budget
        return Decision(
            conversation=conversation_id,
            turn=len(conversation.turns),
            kind="fire",
            actions=(fired,),
            reason=f"{fired.name}: the user agreed",
            budget=budget,
            dropped=conversation.dropped,
        )

    def reject(self, conversation_id: str, act: str | None = None) -> None:
        """An action that was asked about, or fired, is not wanted: it is not proposed again with its values.

        Raises AgentError where there is none.
        """
        with self._lock:
            conversation, found = self.conversations.find_act(
                conversation_id, act, "reject", (Fate.ASKED, Fate.FIRED)
            )
            self.log.write(Answered(event="reject", conversation=conversation_id, act=found.id))
            conversation.fates[found.id] = Fate.REJECTED

    def result(
        self, conversation_id: str, content: Any = None, *, act: str | None = None, ok: bool = True
    ) -> None:
        """The outcome of a fired action, for the log. One that failed (``ok`` False) may fire again.

        Raises AgentError for an action that was never fired.
        """
        with self._lock:
            conversation, fired = self.conversations.find_act(
                conversation_id, act, "result", (Fate.FIRED,), content
            )
            self.log.write(
                Answered(event="result", conversation=conversation_id, act=fired.id, ok=ok, content=content)
            )
            if ok:
                conversation.fates[fired.id] = Fate.DONE
            else:
                conversation.fail(fired)

    def close(self, conversation_id: str) -> None:
        """End a conversation: what was kept of it is let go, and a decision under way is dropped: who waits
        for it gets an AgentError. Raises AgentError where it is not open.
        """
        with self._lock:
            self.conversations.close(self.conversations.find(conversation_id, "close"))
        self._prompts.forget(conversation_id)

    def close_idle(self, seconds: float) -> None:
        """End the conversations in which nothing came for so long."""
        with self._lock:
            idle = self.conversations.idle(seconds)
            for conversation in idle:
                self.conversations.close(conversation, idle=True)
            self.counters["closed_idle"] += len(idle)
        for conversation in idle:
            self._prompts.forget(conversation.id)


def _started(run: RunFolder) -> Started:
    chosen = run.thresholds
    return Started(
        run=str(run.folder),
        adapter=run.adapter.name if run.adapter is not None else "none",
        version=__version__,
        thresholds=None if chosen is None else chosen.tools,
        default=None if chosen is None else chosen.default,
        budget=None if chosen is None else chosen.budget,
        dialogues=0 if chosen is None else chosen.dialogues,
    )


def _resolve_after(before: Future[None] | None, mine: Future[None]) -> None:
    """Let the next decision begin once this one, and the one before it, have ended."""
    if before is None:
        mine.set_result(None)
    else:
        before.add_done_callback(lambda _: mine.set_result(None))
