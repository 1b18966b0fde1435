"""An expert for FunctionGym: it keeps every rule of a grammar that fits what was seen, and probes to tell
them apart.

The grammar: a, b, c and d once each, joined by + - * / and powers, and squares of any part, with at most
`MOST_POWERS` powers and squares in all. Rules that agree on all of `PROBES` count as one, the simplest of
them. It is the upper line for a policy, and the teacher: each `Move` says what it remembers, which rules are
left, what it plans and what it asks.

What it cannot do: rules outside the grammar (it gives up when none is left), and rules that differ nowhere on
its probes but on the test case. Of 444 of UserRL's rules it solves all but ``c ** d ** b ** a`` with its
first answer, most after two probes (``python -m bench.rule_users``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from proactor.environments.gyms.arithmetic import Expression, parse
from proactor.environments.gyms.function import NAMES, FunctionGym, value_of
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.protocol import Call
from proactor.environments.scripted import Move

Values = npt.NDArray[np.float64]

MOST_POWERS = 2
PROBES: tuple[tuple[int, ...], ...] = (
    (2, 3, 5, 7),
    (7, 2, 3, 5),
    (5, 7, 2, 3),
    (3, 5, 7, 2),
    (1, 2, 3, 4),
    (4, 3, 2, 1),
    (2, 1, 4, 3),
    (9, 1, 2, 1),
    (1, 8, 1, 3),
    (3, 1, 9, 2),
    (2, 4, 1, 10),
    (6, 2, 2, 3),
)
"""What it may probe: small integers, which no rule takes too far."""
DIGITS = 4
"""Decimal places that the gym shows of a result."""
FIRST = 0
"""Its first probe while `MANY` rules are left: four different primes tell most rules apart."""
MANY = 5000
"""So many rules differ on a test case for certain; what each of them gives is not computed."""


@dataclass(frozen=True)
class Rules:
    """The rules of the grammar, one a behaviour: ``values`` [rules, probes], nan where there is none."""

    expressions: Sequence[Expression]
    values: Values


def rules_of(gym: FunctionGym | FunctionFamily) -> Rules:
    """The rules that a player of a gym reckons with: the grammar, or the sub-family's own."""
    return family_rules(gym.rules) if isinstance(gym, FunctionFamily) else all_rules()


@cache
def family_rules(rules: tuple[str, ...]) -> Rules:
    """Given rules, those that agree on all of `PROBES` once."""
    expressions = [parse(rule, NAMES) for rule in rules]
    rows = [[value_of(e, probe) for probe in PROBES] for e in expressions]
    values = np.array([[math.nan if v is None else v for v in row] for row in rows])
    return Rules(*_distinct([(expressions, values)]))


@cache
def all_rules() -> Rules:
    """Every behaviour of the grammar; the first call takes about a second."""
    numbers = np.array(PROBES, dtype=np.float64)
    parts: dict[tuple[str, int], tuple[list[Expression], Values]] = {}
    for size in range(1, len(NAMES) + 1):
        for names in map("".join, combinations(NAMES, size)):
            for powers in range(MOST_POWERS + 1):
                parts[names, powers] = _distinct(_candidates(names, powers, parts, numbers))
    found = [parts[NAMES, powers] for powers in range(MOST_POWERS + 1)]
    joined = [e for expressions, _ in found for e in expressions], np.concatenate([v for _, v in found])
    return Rules(*_distinct([joined]))


Pieces = list[tuple[list[Expression], Values]]


def _candidates(
    names: str, powers: int, parts: dict[tuple[str, int], tuple[list[Expression], Values]], numbers: Values
) -> Pieces:
    """All expressions of exactly these names with so many powers, from those of fewer names or powers."""
    if len(names) == 1 and powers == 0:
        return [([names], numbers[:, NAMES.index(names)][None, :])]
    pieces: Pieces = []
    if powers:
        expressions, values = parts[names, powers - 1]
        with np.errstate(all="ignore"):
            pieces.append(([("**", e, 2) for e in expressions], values**2))
    for left, right in _splits(names):
        for of_left in range(powers + 1):
            for sign in "+-*/":
                pieces.append(_joined(sign, parts[left, of_left], parts[right, powers - of_left]))
            if of_left < powers:
                pieces.append(_joined("**", parts[left, of_left], parts[right, powers - of_left - 1]))
    return pieces


def _splits(names: str) -> Iterator[tuple[str, str]]:
    """Both orders of every division of the names in two."""
    for size in range(1, len(names)):
        for left in map("".join, combinations(names, size)):
            yield left, "".join(name for name in names if name not in left)


def _joined(
    sign: str, left: tuple[list[Expression], Values], right: tuple[list[Expression], Values]
) -> tuple[list[Expression], Values]:
    one, two = left[1][:, None, :], right[1][None, :, :]
    with np.errstate(all="ignore"):
        match sign:
            case "+":
                values = one + two
            case "-":
                values = one - two
            case "*":
                values = one * two
            case "/":
                values = one / two
            case _:
                values = np.where(one == 0, np.where(two < 0, np.nan, one**two), one**two)
    values[~np.isfinite(values)] = np.nan  # no result, as where Python raises
    expressions: list[Expression] = [(sign, a, b) for a in left[0] for b in right[0]]
    return expressions, values.reshape(-1, values.shape[-1])


def _distinct(pieces: Pieces) -> tuple[list[Expression], Values]:
    """One expression for each behaviour, the first; those without any value are left out."""
    values = np.concatenate([v for _, v in pieces])
    expressions = [e for es, _ in pieces for e in es]
    fraction, exponent = np.frexp(np.nan_to_num(values, nan=-1e300))
    rows = np.concatenate([np.rint(fraction * 1e9).astype(np.int64), exponent.astype(np.int64)], axis=1)
    mixed = (rows * _odd_numbers(rows.shape[1])).sum(axis=1)  # wraps around: a hash of the row
    _, first = np.unique(mixed, return_index=True)
    kept = [int(i) for i in np.sort(first) if not np.isnan(values[i]).all()]
    return [expressions[i] for i in kept], values[kept]


@cache
def _odd_numbers(count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(-(2**62), 2**62, count, dtype=np.int64) * 2 + 1


@dataclass
class FunctionExpert:
    """Plays one task: `move` says what to do next, `see` takes in what the gym answered."""

    rules: Rules = field(default_factory=all_rules)

    def __post_init__(self) -> None:
        self.left = np.arange(len(self.rules.expressions))
        self.seen: list[tuple[tuple[int, ...], float | None]] = []
        self.test: tuple[float, ...] | None = None
        self.wrong: list[float] = []
        self._probed: set[int] = set()

    def move(self) -> Move | None:
        """The next call; None when no rule of the grammar is left."""
        if self.test is None:
            return self._move(Call("search", "test"), "ask for the test case first")
        if len(self.left) == 0:
            return None
        answers = self.possible()
        probe = self._best_probe() if len(answers) > 1 else None
        if probe is None:
            answer = max(answers, key=lambda a: answers[a])
            why = (
                "all rules left agree on the test case" if len(answers) == 1 else "no probe tells them apart"
            )
            return self._move(Call("answer", f"{answer:.10g}"), f"{why}: answer")
        return self._move(
            Call("action", " ".join(map(str, PROBES[probe]))), "probe where the rules left differ most"
        )

    def see(self, call: Call, observation: str) -> None:
        """What the gym answered to a call of `move`."""
        match call.verb:
            case "search":
                self.test = tuple(float(n) for n in re.findall(r"-?\d+\.?\d*", observation))
            case "action":
                probe = tuple(map(int, call.content.split()))
                place = PROBES.index(probe)
                self._probed.add(place)
                found = re.search(r"the result is (\S+)\.$", observation)
                if observation.startswith("This is the test case"):
                    return
                self.seen.append((probe, float(found[1]) if found else None))
                self.left = self.left[self._fits(self.rules.values[self.left, place], self.seen[-1][1])]
            case "answer":
                self.wrong.append(float(call.content))
                self.left = np.array(
                    [rule for rule in self.left if self._answer(int(rule)) != self.wrong[-1]], dtype=np.int64
                )

    @staticmethod
    def _fits(values: Values, result: float | None) -> npt.NDArray[np.bool_]:
        if result is None:
            return np.isnan(values)
        return np.abs(values - result) <= 0.5 * 10.0**-DIGITS + 1e-9 * abs(result) + 1e-9

    def _best_probe(self) -> int | None:
        """The probe with the most different results among the rules left; None where each has one."""
        if len(self.left) >= MANY:
            return FIRST
        kinds = self._kinds(self.left)
        best = max((p for p in kinds if p not in self._probed), key=lambda p: kinds[p], default=None)
        return best if best is not None and kinds[best] > 1 else None

    def best_probes(self) -> list[int]:
        """All probes, those first that tell most of all rules apart."""
        kinds = self._kinds(np.arange(len(self.rules.expressions)))
        return sorted(kinds, key=lambda p: -kinds[p])

    def _kinds(self, rules: npt.NDArray[np.int64]) -> dict[int, int]:
        """How many different results each probe has among some rules."""
        with np.errstate(over="ignore"):  # infinite where it is too large to be rounded
            rounded = np.round(self.rules.values[rules], DIGITS)
        return {p: len(np.unique(rounded[:, p])) for p in range(len(PROBES))}

    def possible(self) -> dict[float, int]:
        """The results of the rules left for the test case, with how many rules give each; two of them stand
        for all while `MANY` rules are left.
        """
        if len(self.left) >= MANY:
            return {0.0: 1, 1.0: 1}
        answers: dict[float, int] = {}
        for rule in self.left:
            answer = self._answer(int(rule))
            if answer is not None:
                answers[answer] = answers.get(answer, 0) + 1
        return answers or {0.0: 1}

    def _answer(self, rule: int) -> float | None:
        assert self.test is not None, "the test case is asked for first"
        value = value_of(self.rules.expressions[rule], self.test)
        return None if value is None else float(f"{value:.10g}")

    def _move(self, call: Call, plan: str) -> Move:
        known = [f"f({', '.join(map(str, p))}) = {'none' if r is None else f'{r:g}'}" for p, r in self.seen]
        known += [f"the test case is {', '.join(f'{n:g}' for n in self.test)}"] if self.test else []
        known += [f"{answer:g} is wrong" for answer in self.wrong]
        examples = [shown(self.rules.expressions[rule]) for rule in self.left[:2]] if self.seen else []
        left = f"{len(self.left)}" + (f", such as {' or '.join(examples)}" if examples else "")
        return Move(call, "; ".join(known) or "nothing", left, plan)


def shown(expression: Expression) -> str:
    """An expression as text, with all parentheses but the outer ones."""
    match expression:
        case (sign, left, right):
            return " ".join((_inner(left), sign, _inner(right)))
        case (sign, operand):
            return f"{sign}{_inner(operand)}"
    return str(expression)


def _inner(expression: Expression) -> str:
    return f"({shown(expression)})" if isinstance(expression, tuple) else str(expression)
