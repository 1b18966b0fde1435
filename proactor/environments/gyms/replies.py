"""Reads the replies of a model that was asked for one of a few words, or for a list."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NEGATION = re.compile(r"\b(?:not|no|never|cannot|neither|nor|without|hardly|refuse\w*)\b|n['’]t\b")
_CLAUSE = re.compile(r"[.:;!?\n]|\b(?:but|so|hence|thus|therefore)\b")
_MARKUP = " \t*_`\"'#>-("
_LIST = re.compile(r"\[[^\[\]]*\]")


def said_word(reply: str, words: Mapping[str, str]) -> str | None:
    """Which of ``words`` (names, each with a pattern of its forms) a reply says: the one that it begins with
    and that stands alone, or else the only one that is mentioned without a negation; None where it says none.
    """
    text = reply.lower().strip(_MARKUP + "\n")
    forms = "|".join(f"(?P<{name}>{pattern})" for name, pattern in words.items())
    if first := re.match(rf"(?:{forms})[{re.escape(_MARKUP)}]*(?:[.,!:\n]|$)", text):
        return first.lastgroup
    said = {
        found.lastgroup
        for found in re.finditer(rf"\b(?:{forms})\b", text)
        if not _negated(text[: found.start()].rstrip(_MARKUP), text[found.end() :].lstrip(_MARKUP), words)
    }
    return said.pop() if len(said) == 1 else None


def _negated(before: str, after: str, words: Mapping[str, str]) -> bool:
    """Whether a word between two texts is negated by one before it; not where it is a clause by itself."""
    if before.endswith(",") and (not after or after[0] in ".,:;!?\n"):
        return False
    clause = _CLAUSE.split(before)[-1]
    return any(found[0] not in words for found in _NEGATION.finditer(clause))


def last_list(reply: str) -> str:
    """The last list in brackets that a reply holds; empty without one. What comes before it may be drafts."""
    return next(reversed(_LIST.findall(reply)), "")
