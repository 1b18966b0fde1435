"""Splits by unseen domains and tools: dialogues that test them are kept out of training."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proactor.dialogue import Dialogue
from proactor.sources.corpus import Corpus, sample, split_of, with_dialogues


class Unseen(BaseModel):
    """Dialogues of these ``domains`` ("A+B" is of both), or that call one of these ``tools``, make up the
    test part and are in no other part.

    A training dialogue may still be offered an unseen tool that it does not call: the tool's name then
    appears in a prompt, a call of it nowhere.

    ``each``: the most test dialogues of unseen domains, and of unseen tools. ``seen``: how many dialogues of
    the test split that are neither, at most, stand beside them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domains: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    each: int | None = Field(default=None, ge=1)
    seen: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check_counts(self) -> Unseen:
        if (self.each or self.seen) and not self:
            raise ValueError("each and seen count test dialogues beside domains or tools: name some")
        return self

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

    def kind(self, dialogue: Dialogue) -> str:
        """What a dialogue of the test part tests: "unseen_domain", "unseen_tool" or "seen"."""
        return self.reason(dialogue) or "seen"

    def apply(self, corpus: Corpus, part: str, limit: int | None, seed: int) -> Corpus:
        """The dialogues of ``part`` (train, dev or test), at most ``limit`` of them, sampled by ``seed``.

        Counters: ``unseen_domain`` and ``unseen_tool`` left out of train or dev, `seen` left out of test.
        """
        counters: Counter[str] = Counter()
        kept = []
        beside = self._beside(corpus, seed) if part == "test" else set[str]()
        for dialogue in corpus.dialogues:
            reason = self.reason(dialogue)
            if part == "test":
                reason = "" if self.belongs_to_test(dialogue) or dialogue.id in beside else "seen"
            if reason:
                counters[reason] += 1
            else:
                kept.append(dialogue)
        if part == "test" and self.each is not None:
            kept = self._at_most_each(kept, self.each, seed)
        return with_dialogues(corpus, sample(kept, lambda d: d.id, limit, seed), counters)

    def _beside(self, corpus: Corpus, seed: int) -> set[str]:
        """Ids of the seen dialogues of the test part."""
        seen = [d.id for d in corpus.dialogues if not self.reason(d) and split_of(corpus.unit(d)) == "test"]
        return set(sample(seen, str, self.seen, seed))

    def _at_most_each(self, tested: Sequence[Dialogue], most: int, seed: int) -> list[Dialogue]:
        """``tested`` in order, with at most ``most`` dialogues of either unseen kind."""
        kept: set[str] = set()
        for kind, limit in (("unseen_domain", most), ("unseen_tool", most), ("seen", None)):
            kept.update(sample([d.id for d in tested if self.kind(d) == kind], str, limit, seed))
        return [dialogue for dialogue in tested if dialogue.id in kept]

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
