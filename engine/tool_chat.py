"""`ToolChat`: conversations with tools, token by token, whose sampled turns are never encoded again.

    chat = ToolChat(engine.chat)
    sample = await session.sample(chat.opening(messages, tools))
    reply = chat.read(sample.token_ids)             # content, calls, problems
    await session.advance(sample, chat.observation(sample.token_ids, [{"role": "tool", "content": result}]))

The opening is the template's text up to where the first turn begins. An observation is what the template adds
from the end token of a turn to the beginning of the next: the newline that some write after the end token,
the messages, the generation prompt. Both are encoded once, where they stand; between them are the sampled
ids.

`ToolReport` says what the template would do to such a conversation when it is rendered whole: it may strip
the thinking of earlier answers, or close a result differently once more follows it. A model that is sampled
and trained token by token never sees that, but it differs from what the model was taught. A template that
changes the *beginning* of a conversation as it goes on is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proactor.engine.chat import ChatFormat
from proactor.engine.chat_messages import read_messages, read_tools
from proactor.engine.chat_template import ChatError, Message
from proactor.engine.constraint import Constraint
from proactor.engine.reply_grammar import reply_constraint
from proactor.engine.tool_calls import Form, Reply
from proactor.engine.tool_template import (
    PROBE_RESULT,
    PROBE_TOOL,
    PROBE_USER,
    THOUGHT,
    Rendering,
    ToolTemplate,
    probe_call,
)
from proactor.engine.types import Sample


@dataclass(frozen=True, slots=True)
class ToolReport:
    """Properties of a template, from three rounds of a synthetic conversation.

    native: it shows tools, calls and results itself; otherwise they are put in words. form: how calls are
    written. default_opening: what it says before the first user message where there is no system message.
    dated: it writes a date, which is frozen. rewrites_answers, rewrites_observations: a later rendering has
    another text there. exact: the ids by pieces are those of the whole. problems: one line each, none when
    all is well.
    """

    native: bool
    form: Form
    default_opening: str
    dated: bool
    rewrites_answers: bool
    rewrites_observations: bool
    exact: bool
    problems: tuple[str, ...]


class ToolChat:
    """The codec of one model. May be used by several threads.

    ``counters``: those of `ToolTemplate`, and ``unclosed_turns``: turns that were cut before their end token,
    which the observation then brings. Raises ChatError for a template that rewrites a conversation's
    beginning.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self.template = ToolTemplate(chat)
        self.report = self._check(chat)
        self.counters.clear()  # what the check counted

    @property
    def counters(self) -> Counter[str]:
        """Totals by name."""
        return self.template.counters

    def opening(self, messages: Any, tools: Any = ()) -> list[int]:
        """Ids up to where the first turn is sampled.

        Messages and tools in OpenAI's form: system messages in any place, earlier answers with
        ``tool_calls``, results (role ``tool``), contents as texts or lists of parts. Raises ChatError for
        anything else, for what the template refuses, and for a message that it would leave out.
        """
        return self.template.encode(messages, tools)

    def observation(self, sampled_ids: Sequence[int], messages: Any) -> list[int]:
        """Ids between a turn (``sampled_ids``, as drawn) and the next one: only these are encoded.

        ``messages``: results of its calls (with ``name``, which some templates want), messages of the user or
        the system, in their order. Raises ChatError as `opening`, for none, and for one of the assistant.
        """
        read = read_messages(messages)
        if not read or any(message["role"] == "assistant" for message in read):
            raise ChatError("an observation is one message or more, none of them the assistant's")
        ids = self.template.ids(self.template.observation(read))
        if not self.template.end:
            return ids
        if sampled_ids and sampled_ids[-1] in self.template.end_ids:
            return ids[1:]
        self.template.count(["unclosed_turns"])
        return [*self.template.chat.end_ids, *ids[1:]]

    def answer(self, message: Any) -> list[int]:
        """Ids of an assistant's message as the model would have sampled it, end token included."""
        [read] = read_messages([message])
        if read["role"] != "assistant":
            raise ChatError(f"an answer is a message of the assistant, not of {read['role']!r}")
        return self.template.ids(self.template.answer(read))

    def sample(self, messages: Any, tools: Any = ()) -> Sample:
        """A conversation that others had, as a sample whose trained tokens are the answers.

        For supervised examples. Raises ChatError as the other methods, and for one that does not end in an
        answer, or has two in a row.
        """
        read = read_messages(messages)
        turns = [i for i, message in enumerate(read) if message["role"] == "assistant"]
        if not turns or turns[-1] != len(read) - 1 or turns[0] == 0:
            raise ChatError(
                "a conversation to learn from begins with another's message and ends in an answer"
            )
        sample = Sample(self.opening(read[: turns[0]], tools), [], mask=[])
        before = turns[0]
        for turn in turns:
            if turn > before:
                sample.extend(self.observation(sample.token_ids, read[before + 1 : turn]))
            ids = self.answer(read[turn])
            sample.append(Sample(sample.prompt_ids + sample.token_ids, ids))
            before = turn
        return sample

    def read(self, sampled_ids: Sequence[int], stop: Sequence[str] = ()) -> Reply:
        """A sampled turn: what it says and calls, up to the first of ``stop`` (those it was sampled with)."""
        return self.template.read(sampled_ids, stop)

    def constraint(
        self, tools: Any, choice: str = "auto", schema: Mapping[str, Any] | None = None
    ) -> Constraint | None:
        """What a turn must be (`Sampling.constraint`), as the template writes it; None for anything.

        ``choice``: ``required`` (one call or more), a tool's name, ``none`` (no calls), or ``auto`` (calls or
        text; the calls of tools that say ``strict`` keep to their schemas). ``schema``: the text is JSON.
        Raises EngineError for a schema that cannot be kept to, with its place, and for an unknown tool.
        """
        return reply_constraint(self.template, tools, choice, schema)

    # -- the check ---

    def _check(self, chat: ChatFormat) -> ToolReport:
        template, tools = self.template, read_tools([PROBE_TOOL])
        opening, rounds = _synthetic("system" in chat.report.roles, template.thinks)
        pieces = [template.render(opening, tools, generation=True)]
        for answer, observed in rounds:
            pieces += [template.answer(answer), template.observation(observed)]
        messages = [*opening, *(message for answer, observed in rounds for message in (answer, *observed))]
        whole = template.render(messages, tools, generation=True)
        changed = _changed(whole.text, [piece.text for piece in pieces], template.end, template.prompt)
        exact = not any(changed) and template.ids(whole) == self._joined(pieces)
        problems = [*(line for line in chat.report.problems if "date" in line)]
        if not template.native:
            problems.append(
                "the template knows no tools, or writes calls in an unknown form: they are put in words"
            )
        if changed[0]:
            problems.append("the template rewrites earlier answers")
        if changed[1]:
            problems.append("the template closes or frames an observation differently once more follows")
        if not template.end:
            problems.append("there is no special token that ends an answer")
        if not exact and not any(changed):
            problems.append("the tokenizer merges across turns: ids differ from those of the whole")
        return ToolReport(
            native=template.native,
            form=template.form,
            default_opening=template.default_opening(),
            dated=chat.report.dated,
            rewrites_answers=changed[0],
            rewrites_observations=changed[1],
            exact=exact,
            problems=tuple(problems),
        )

    def _joined(self, pieces: Sequence[Rendering]) -> list[int]:
        """Ids of an opening, an answer, an observation, …; both of the latter have the end token."""
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            new = self.template.ids(piece)
            ids += new[1:] if i and i % 2 == 0 and self.template.end else new
        return ids


def _synthetic(system: bool, thinks: bool) -> tuple[list[Message], list[tuple[Message, list[Message]]]]:
    """A conversation's opening, and rounds of an answer and what is observed after it."""
    opening: list[Message] = [{"role": "system", "content": "Be brief."}] if system else []
    thought = THOUGHT if thinks else "Letters of two days."
    return [*opening, PROBE_USER], [
        (probe_call("Friday"), [PROBE_RESULT]),
        ({"role": "assistant", "content": thought}, [{"role": "user", "content": "And on Sunday?"}]),
        (probe_call("Sunday"), [PROBE_RESULT, {**PROBE_RESULT, "content": "none"}]),
    ]


def _changed(whole: str, pieces: Sequence[str], end: str, prompt: str) -> tuple[bool, bool]:
    """Whether answers, and observations, stand differently in the whole text than by pieces.

    ``prompt``: the generation prompt's text, after which the comparison goes on. Raises ChatError where the
    opening is another one.
    """
    opening, *rest = pieces
    at, answers, observations = len(opening.removesuffix(prompt)), False, False
    if not whole.startswith(opening[:at]):
        raise ChatError("the chat template rewrites the beginning of a conversation when it goes on")
    for answer, observation in zip(rest[::2], rest[1::2], strict=True):
        said, seen = prompt + answer.removesuffix(end), observation.removesuffix(prompt)
        same, place = whole.startswith(said, at), whole.find(seen, at)
        answers |= not same
        observations |= place < 0 or (same and place != at + len(said))
        at = place + len(seen) if place >= 0 else max(at, whole.find(prompt, at + len(prompt)))
    return answers, observations or (not answers and whole[at:] != prompt)
