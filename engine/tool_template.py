"""`ToolTemplate`: what a model's chat template writes for conversations with tools, as text and as ids.

A template that shows tools, calls and results is used as it is, if its calls can be read back. For any other,
tools are put in words (`chat_messages.in_words`), and `ToolTemplate.native` is False.

Nobody's text becomes a control token: the texts of special tokens in messages and definitions stand as place
holders while the template runs, and are then encoded as plain text.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from proactor.engine.chat import ChatFormat
from proactor.engine.chat_messages import in_words, read_messages, read_tools
from proactor.engine.chat_template import ChatError, Message
from proactor.engine.text import TextCodec, decode
from proactor.engine.tool_calls import FORMS, Form, Reply, ToolCall, read_reply

STUB: Final = "Wieland7194words"
"""Stands for what an assistant said where the text after it is wanted."""
PROBE_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "look_up_letters",
        "description": "Counts the letters of a day",
        "parameters": {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"]},
    },
}
PROBE_USER: Final = {"role": "user", "content": "Wieland asks what is left to do?"}
PROBE_RESULT: Final = {
    "role": "tool",
    "tool_call_id": "call00000",
    "name": "look_up_letters",
    "content": "two",
}


THOUGHT: Final = "<think>\nponder\n</think>\n\nLetters of two days."
_SPOKEN: Final = {"role": "assistant", "content": STUB}


def probe_call(day: str, name: str = "call00000") -> dict[str, Any]:
    """A message of the assistant that calls `PROBE_TOOL`; ``name`` is the call's id."""
    function = {"name": "look_up_letters", "arguments": {"day": day}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": name, "type": "function", "function": function}],
    }


@dataclass(frozen=True, slots=True)
class Rendering:
    """A text that a template wrote; ``mask``: what place holders of special tokens begin with, or ""."""

    text: str
    mask: str = ""


class ToolTemplate:
    """A chat format's template with tools.

    ``native``: the template knows tools itself. ``form``: how calls are written and read. ``counters``:
    ``special_texts`` (conversations with a special token's text in them), ``rewritten_answers`` (earlier
    answers that the template changes, such as their thinking), and those of every reply read
    (`Reply.counts`). May be used by several threads.
    """

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self.counters: Counter[str] = Counter()
        self.text = TextCodec(chat.tokenizer)
        self._lead = self.text.opening if chat.plain else ()  # a template writes its own begin token
        specials = sorted(self.text.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        self._lock = threading.Lock()
        names = {token: special for special, token in self.text.specials.items()}
        self.end = names[chat.end_ids[-1]] if chat.end_ids else ""
        """Text of the special token that ends an answer; empty where there is none."""
        self.call_end = self.end
        self.prompt = chat.fill([PROBE_USER], True).removeprefix(chat.fill([PROBE_USER]))
        """Text of the generation prompt."""
        form = self._native_form()
        self.native, self.form = form is not None, form or FORMS[0]
        if self.native:
            self.call_end = self._ending(self._after_prompt(probe_call(STUB)))
        self.end_ids = frozenset(self.text.specials[end] for end in {self.end, self.call_end} - {""})
        """Ids that end a turn in this template."""
        self._ends = self.end_ids | chat.eos_ids

    @property
    def thinks(self) -> bool:
        """Whether an answer may begin with its thinking; not where the generation prompt ends it."""
        try:
            self.answer({"role": "assistant", "content": THOUGHT})
        except ChatError:
            return False
        return True

    # -- a conversation as a whole ---

    def encode(self, messages: Any, tools: Any = ()) -> list[int]:
        """Ids of a conversation and the generation prompt, as the template writes it.

        Messages and tools in OpenAI's form (`read_messages`, `read_tools`). Raises ChatError for what these
        refuse, what the template refuses, and a message that it drops.
        """
        read = read_messages(messages)
        if not read:
            raise ChatError("a conversation without messages has no prompt")
        return [*self._lead, *self.ids(self.render(read, read_tools(tools), generation=True))]

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), generation: bool = False
    ) -> Rendering:
        """The text of messages and tools that were read."""
        masked, mask = self._mask({"messages": list(messages), "tools": list(tools)})
        text = self._fill(masked["messages"], masked["tools"], generation, self.native)
        self._check_shown(masked["messages"], text)
        return Rendering(text, mask)

    def ids(self, rendering: Rendering) -> list[int]:
        """Ids of a rendering, or of a part of one."""
        if not rendering.mask:
            return self.text.markup(rendering.text)
        specials = list(self.text.specials)
        pieces = re.split(f"{rendering.mask}(\\d+)x", rendering.text)
        return [
            token
            for i, piece in enumerate(pieces)
            for token in (self.text.plain(specials[int(piece)]) if i % 2 else self.text.markup(piece))
        ]

    # -- its parts ---

    def answer(self, message: Message) -> Rendering:
        """What the model would have sampled for an assistant's message that was read, with its end token."""
        if not self.native:  # as written, whatever the template makes of it
            masked, mask = self._mask({"messages": in_words([message], (), system=True)})
            return Rendering(masked["messages"][0]["content"] + self.end, mask)
        masked, mask = self._mask({"messages": [message]})
        text = self._after_prompt(masked["messages"][0])
        end = self.call_end if message.get("tool_calls") else self.end
        self._check_shown(masked["messages"], text)
        return Rendering(text[: text.rindex(end) + len(end)] if end else text, mask)

    def observation(self, messages: Sequence[Message]) -> Rendering:
        """From the end token of an answer on: what follows it, and the generation prompt."""
        masked, mask = self._mask({"messages": list(messages)})
        results = self.native and messages[0]["role"] == "tool"
        stub = probe_call(STUB, messages[0].get("tool_call_id", "call00000")) if results else _SPOKEN
        tools = [PROBE_TOOL] if self.native else []
        text = self._fill([PROBE_USER, stub, *masked["messages"]], tools, True, self.native)
        self._check_shown(masked["messages"], text)
        _, _, rest = text.partition(STUB)
        end = self.call_end if results else self.end
        if end not in rest:
            raise ChatError("the chat template does not end an answer before what follows it")
        return Rendering(rest[rest.index(end) :], mask)

    def default_opening(self) -> str:
        """What the template says before a first user message: its default system message."""
        head = self._fill([PROBE_USER], [], False, self.native).partition(PROBE_USER["content"])[0]
        later = self._fill([PROBE_USER, _SPOKEN, PROBE_USER], [], False, self.native).rpartition(STUB)[2]
        frame = later.partition(PROBE_USER["content"])[0]
        while frame and not head.endswith(frame):  # the end of the answer stands in it too
            frame = frame[1:]
        return self._special.sub("", head.removesuffix(frame)).strip()

    # -- replies ---

    def read(self, ids: Sequence[int], stop: Sequence[str] = ()) -> Reply:
        """A sampled turn, read up to the first of ``stop`` (`Sampling.stop`).

        The end tokens that it closes with are left out; other special tokens are text.
        """
        said = list(ids)
        while said and said[-1] in self._ends:
            said.pop()
        text = decode(self.chat.tokenizer, said, specials=True)
        stops = [at for s in stop if (at := text.find(s)) >= 0]
        return self.read_text(text[: min(stops, default=len(text))])

    def read_text(self, text: str) -> Reply:
        """As `read`, of the text."""
        reply = read_reply(text, self.form)
        self.count(reply.counts())
        return reply

    def count(self, counts: Mapping[str, int] | Iterable[str]) -> None:
        """Add to the counters."""
        with self._lock:
            self.counters.update(counts)

    # -- inside ---

    def _fill(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], generation: bool, native: bool
    ) -> str:
        if native:
            return self.chat.fill(messages, generation, tools)
        return self.chat.fill(in_words(messages, tools, "system" in self.chat.report.roles), generation)

    def _after_prompt(self, message: Message) -> str:
        """What the template itself writes after the generation prompt for an answer that ends the text."""
        before = self.chat.fill([PROBE_USER], True, [PROBE_TOOL])
        after = self.chat.fill([PROBE_USER, message], False, [PROBE_TOOL])
        if not after.startswith(before):
            raise ChatError("the chat template does not begin an answer as its generation prompt does")
        return after.removeprefix(before)

    def _ending(self, text: str) -> str:
        """The last special token of an answer; empty where there is none."""
        return next(iter(self._special.findall(text)[::-1]), "")

    def _native_form(self) -> Form | None:
        """How the template writes calls; None where it does not show tools, calls and results, or where what
        it writes cannot be read.
        """
        call = probe_call("Friday")
        try:
            text = self.chat.fill([PROBE_USER, call, PROBE_RESULT], True, [PROBE_TOOL])
            written = self._after_prompt(call)
        except ChatError:
            return None
        end = self._ending(written)
        written = written[: written.rindex(end)] if end else written
        expected = Reply("", (ToolCall("look_up_letters", {"day": "Friday"}),))
        forms = [form for form in FORMS if read_reply(written, form) == expected]
        shown = "Counts the letters of a day" in text and PROBE_RESULT["content"] in text
        return forms[0] if shown and forms else None

    def _mask(self, values: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The values with place holders for special tokens, and what these begin with; "" where none is."""
        if self.text.special_in(values) is None:
            return values, ""
        self.count(["special_texts"])
        everything, number = json.dumps(values, default=str), 0
        while (stem := f"Wieland{number}special") in everything:
            number += 1
        places = {special: f"{stem}{i}x" for i, special in enumerate(self.text.specials)}

        def mask(value: Any) -> Any:
            if isinstance(value, str):
                return self._special.sub(lambda found: places[found[0]], value)
            if isinstance(value, Mapping):
                return {mask(key): mask(item) for key, item in value.items()}
            return [mask(item) for item in value] if isinstance(value, list | tuple) else value

        return mask(values), stem

    def _check_shown(self, messages: Sequence[Message], text: str) -> None:
        """Raise ChatError for a message that is not in the text; answers that are rewritten are counted."""
        for i, message in enumerate(messages):
            said = [message["content"].strip(), message.get("reasoning_content", "").strip()]
            if all(words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text for words in said):
                continue
            if message["role"] != "assistant":
                raise ChatError(
                    f"the chat template leaves out message {i + 1} ({message['role']}), or changes it"
                )
            self.count(["rewritten_answers"])
