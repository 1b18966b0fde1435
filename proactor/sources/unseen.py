"""Splits by unseen domains and tools: dialogues that test them are kept out of training."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from proactor.dialogue import Dialogue
from proactor.sources.corpus import Corpus, sample, with_dialogues


class Unseen(BaseModel):
    """Dialogues of these ``domains`` ("A+B" is of both), or that call one of these ``tools``, make up the
    test part and are in no other part.

    A training dialogue may still be offered an unseen tool that it does not call: the tool's name then
    appears in a prompt, a call of it nowhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.domains or self.tools)

    def reason(self, dialogue: Dialogue) -> str:
        """Why a dialogue is kept out of training: "unseen_domain", "unseen_tool" (called, or begun and
        withdrawn), or "".
        """
        if set(self.domains) & _domains(dialogue):
            return "unseen_domain"
        tools = {r.name for r in (*dialogue.references, *dialogue.withdrawn)}
        return "unseen_tool" if tools & set(self.tools) else ""

    def belongs_to_test(self, dialogue: Dialogue) -> bool:
        """Whether the dialogue is of an unseen domain or calls an unseen tool."""
        called = {r.name for r in dialogue.references}
        return bool(set(self.domains) & _domains(dialogue) or called & set(self.tools))

    def apply(self, corpus: Corpus, part: str, limit: int | None, seed: int) -> Corpus:
        """The dialogues of ``part`` (train, dev or test), at most ``limit`` of them, sampled by ``seed``.

        Counters: ``unseen_domain`` and ``unseen_tool`` left out of train or dev, `seen` left out of test.
        """
        counters: Counter[str] = Counter()
        kept = []
        for dialogue in corpus.dialogues:
            reason = self.reason(dialogue)
            if part == "test":
                reason = "" if self.belongs_to_test(dialogue) else "seen"
            if reason:
                counters[reason] += 1
            else:
                kept.append(dialogue)
        return with_dialogues(corpus, sample(kept, lambda d: d.id, limit, seed), counters)

    def describe_unknown(self, corpus: Corpus) -> str:
        """One line on the first domain or tool that ``corpus`` does not have, "" when it has them all."""
        domains = {name for dialogue in corpus.dialogues for name in _domains(dialogue)}
        for kind, names, known in (
            ("domains", self.domains, domains),
            ("tools", self.tools, set(corpus.catalog.names)),
        ):
            for name in names:
                if name not in known:
                    return f"unseen.{kind}: no {kind[:-1]} is {name!r}{_hint(name, known)}"
        return ""


def _domains(dialogue: Dialogue) -> set[str]:
    """A dialogue's domain and its parts: "A+B", "A", "B"."""
    return {dialogue.domain, *dialogue.domain.split("+")} - {""}


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f"; there are {', '.join(sorted(known)) or 'none'}"
