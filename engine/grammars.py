"""Constraints compiled for one tokenizer (`Grammars`), and the state of a sample's text in one (`Matcher`).

The work is llguidance's: an Earley parser over a lazily built lexer, walked along a trie of the vocabulary.
bench/NOTES.md says what else was measured. A `Matcher` belongs to a sample: it knows the text that was drawn,
so a sample that is preempted and computed again, or goes on under new weights, finds it as it was. Forks of a
prompt have one each; so has every turn of a session.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from proactor.engine.constraint import Constraint
from proactor.engine.schema_faults import place_of
from proactor.engine.text import tokenizer_faults
from proactor.engine.types import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_KEPT: Final = 256
"""Compiled constraints that are kept, the last used ones."""
JSON_STYLE: Final = {"whitespace_pattern": r" |\n[ ]{0,20}"}
"""White space where JSON allows it: a space, or a line break and an indent, so that none goes on for ever."""
WORD: Final = 32
"""Bits of a word of a mask."""
_QUOTED: Final = re.compile(r"\d+ \|")
_ODD: Final = re.compile(r"\\.|/|\n", re.DOTALL)


class Matcher:
    """The state of one sample's text. Used by one thread at a time.

    ``more``: end ids beside the tokenizer's own; ``less``: those of its own that end nothing here.
    """

    __slots__ = ("core", "less", "more", "own", "taken")

    def __init__(self, core: LLMatcher, own: int, more: tuple[int, ...], less: tuple[int, ...]) -> None:
        self.core, self.own, self.more, self.less = core, own, more, less
        self.taken = 0

    def follow(self, ids: Sequence[int]) -> None:
        """Take in what was drawn since the last time; ``ids``: the whole text."""
        while self.taken < len(ids) and self.core.consume_token(ids[self.taken]):
            self.taken += 1

    def fault(self) -> str:
        """Why the text cannot go on; "" where it can, or is complete. A mask of such a text means nothing."""
        return _one_line(self.core.get_error()) if self.core.is_error() else ""

    def place_ends(self, bits: NDArray[np.uint32]) -> None:
        """Into a mask that was computed: the end ids of this sample, allowed where its text is complete."""
        if self.more and has(bits, self.own):
            for token in self.more:
                bits[token // WORD] |= np.uint32(1 << token % WORD)
        for token in self.less:
            bits[token // WORD] &= ~np.uint32(1 << token % WORD)


class Grammar:
    """A compiled constraint."""

    def __init__(self, core: LLMatcher, ends: frozenset[int]) -> None:
        self._core, self._ends = core, ends

    def matcher(self, ends: frozenset[int]) -> Matcher:
        """The state of a text that begins, and may end with ``ends``. Copies share what was compiled."""
        more, less = tuple(ends - self._ends), tuple(self._ends - ends)
        return Matcher(self._core.deep_copy(), min(self._ends), more, less)


class Grammars:
    """Compiles constraints for a tokenizer and a model of ``size`` ids; ``ends`` are its end ids.

    May be used by several threads.
    """

    def __init__(self, tokenizer: Any, size: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._size, self._ends = tokenizer, size, ends
        self._compiled: OrderedDict[Constraint, Grammar] = OrderedDict()
        self._vocabulary: LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, constraint: Constraint, ends: frozenset[int]) -> Grammar:
        """The grammar of a constraint, for samples that end with ``ends``.

        Raises EngineError for one that cannot be kept to, a tokenizer that is not a fast one, and samples
        without an end.
        """
        if not ends or not self._ends:
            raise EngineError("constraint: needs an end token, and there is none (ignore_eos takes it away)")
        with self._lock:
            grammar = self._compiled.pop(constraint, None)
            if grammar is None:
                grammar = Grammar(self._core(constraint), self._ends)
            self._compiled[constraint] = grammar
            if len(self._compiled) > MOST_KEPT:
                self._compiled.popitem(last=False)
        return grammar

    def _core(self, constraint: Constraint) -> LLMatcher:
        library, text = _library(), _grammar(constraint)
        core = library.LLMatcher(self._words(), text, log_level=0)
        if not core.is_error():
            core.compute_bitmask()  # whether any text fits comes out here; the copies share what it builds
        if core.is_error():
            fault = _one_line(library.LLMatcher.validate_grammar(text) or core.get_error())
            if constraint.json_schema is None:
                kind = "regex" if constraint.regex is not None else "grammar"
                raise EngineError(f"constraint: {kind}: {fault}")
            check_schema(json.loads(constraint.json_schema), "constraint: json_schema")
            raise EngineError(f"constraint: json_schema: {fault}")
        return core

    def _words(self) -> LLTokenizer:
        """The vocabulary as the library sees it; seconds for a large one, once."""
        if self._vocabulary is None:
            _library()
            from llguidance.hf import from_tokenizer

            if getattr(self._tokenizer, "backend_tokenizer", None) is None:
                raise EngineError("constraint: needs a fast tokenizer (a tokenizer.json in the model folder)")
            with tokenizer_faults("constraint: this tokenizer cannot be read"):
                self._vocabulary = from_tokenizer(self._tokenizer, self._size, sorted(self._ends))
        return self._vocabulary


def has(bits: NDArray[np.uint32], token: int) -> bool:
    """Whether a mask allows a token."""
    return bool(bits[token // WORD] >> np.uint32(token % WORD) & np.uint32(1))


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise EngineError("constraint: needs llguidance: pip install 'proactor[constrain]'") from None
    return llguidance


def _grammar(constraint: Constraint) -> str:
    """A constraint in the library's form, at whose end every token is allowed that the text may go on with:
    by default a text that can go on in one way alone is only allowed in the tokenizer's own tokens.
    """
    if constraint.json_schema is not None:
        rules = f"start: {json_rule(json.loads(constraint.json_schema))}"
    elif constraint.regex is not None:
        rules = f"start: /{_ODD.sub(_in_slashes, constraint.regex)}/"
    else:
        rules = constraint.grammar or ""
    return f'{rules}\n%llguidance {{"no_forcing": true}}\n'


def json_rule(schema: Any) -> str:
    """A JSON schema as a part of a rule."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_STYLE}, ensure_ascii=False)}"


def _in_slashes(found: re.Match[str]) -> str:
    """What stands for a slash, a line break or an escape of a regular expression between slashes."""
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(found[0], found[0])


def check_schema(schema: Any, what: str) -> None:
    """Raise EngineError, with ``what`` first and the place, for a schema that cannot be kept to."""
    if fault := _schema_fault(schema):
        place = place_of(schema, _schema_fault)
        raise EngineError(f"{what}, at {place or 'its root'}: {fault}")


def _schema_fault(schema: Any) -> str:
    """What the library says against a schema; "" for nothing."""
    matcher = _library().LLMatcher
    return _one_line(matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema))))


def _one_line(message: str) -> str:
    """A message of the library without its drawings of the place and its dumps of state."""
    message = message.partition("<state>")[0].replace("NoExtensionBias", "no text fits")
    lines = [line.strip() for line in message.splitlines()]
    return " ".join(line for line in lines if line.strip("^") and not _QUOTED.match(line))
