"""Where a text says a value literally [INFERRED].

Both are compared as `fold` gives them: in any case, full-width letters and digits as plain ones, composed. A
value is said where its words stand in the text as whole words. What a whole word is depends on the script:

- A word ends between two letters or digits only where one of them belongs to a script without spaces between
  words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan): "5" is said in "5時", not in "15時".
  Digits of any script count as those of a spaced one. Elsewhere, a value inside a longer word is not said.
- Korean writes spaces but appends particles: a value may be followed by Hangul.
- No word ends before a combining mark, a vowel that is written after its consonant (Thai, Lao), a small kana
  or a long-vowel mark, nor begins after a vowel that is written before its consonant (Thai, Lao).

Inside a run of Chinese or Japanese, or of Thai, nothing but a dictionary tells words from parts of words: a
value is said there wherever its characters stand.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from proactor.dialogue.dialogue import fold

_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"  # Thai to Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # radicals, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Han
)
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff]")
_NEVER_FIRST = frozenset("ะาำๅະາຳーぁぃぅぇぉゃゅょゎァィゥェォャュョヮ")
_NEVER_LAST = frozenset("เแโใไເແໂໃໄ")
_LETTER = re.compile(r"\w")


def says(text: str, value: str) -> bool:
    """Whether ``text`` says ``value``; never for a value without a letter or digit."""
    return next(find(text, value), None) is not None


def find(text: str, value: str) -> Iterator[tuple[int, int]]:
    """The places (start, end) in the folded ``text`` at which it says ``value``; they may overlap."""
    words = _words(value)
    text = _folded(text)
    if not words or words[0] not in text:
        return
    pattern = _pattern(words)
    position = 0
    while (match := pattern.search(text, position)) is not None:
        if _is_whole(text, *match.span()):
            yield match.span()
        position = match.start() + 1


@lru_cache(maxsize=8192)
def _folded(text: str) -> str:
    return fold(text)


@lru_cache(maxsize=65536)
def _words(value: str) -> tuple[str, ...]:
    return tuple(fold(value).split()) if _LETTER.search(value) else ()


@lru_cache(maxsize=65536)
def _pattern(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\s+".join(map(re.escape, words)))


def _is_whole(text: str, start: int, end: int) -> bool:
    before, first, last, after = text[start - 1 : start], text[start], text[end - 1], text[end : end + 1]
    if after and (after in _NEVER_FIRST or unicodedata.category(after).startswith("M")):
        return False
    if before in _NEVER_LAST and not _is_spaced(first):
        return False
    if before and _is_spaced(before) and _is_spaced(first):
        return False
    return not (after and _is_spaced(last) and _is_spaced(after) and not _HANGUL.match(after))


def _is_spaced(character: str) -> bool:
    """Whether it is a letter, digit or combining mark of a script with spaces between words."""
    if character.isdecimal() or character == "_":
        return True
    part_of_word = character.isalnum() or unicodedata.category(character).startswith("M")
    return part_of_word and not _UNSPACED.match(character)
