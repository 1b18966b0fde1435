"""Arithmetic that is parsed and never executed gives what Python gives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.environments.gyms.arithmetic import ExpressionError, evaluate, parse

EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "c", "d", "2", "0.5"]),
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from(["+", "-", "*", "/", "**"]), part).map(lambda p: f"({' '.join(p)})"),
        part.map(lambda p: f"-{p}"),
    ),
    max_leaves=5,
)


@given(EXPRESSIONS, st.lists(st.integers(-4, 4).map(float), min_size=4, max_size=4))
def test_values_are_pythons(text: str, numbers: list[float]) -> None:
    values = dict(zip("abcd", numbers))
    try:
        want = eval(text, {"__builtins__": {}}, values)
    except ArithmeticError as error:
        with pytest.raises(type(error)):
            evaluate(parse(text, "abcd"), values)
        return
    if isinstance(want, complex):
        with pytest.raises(ExpressionError, match="complex"):
            evaluate(parse(text, "abcd"), values)
    else:
        assert evaluate(parse(text, "abcd"), values) == want


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        "a.real",
        "f(a)",
        "[a]",
        "a if b else c",
        "True",
        "'a'",
        "a < b",
        "e",
        "a @ b",
        "\0",
        "(" * 150,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text, "abcd")


def test_what_would_only_take_time_is_refused() -> None:
    with pytest.raises(OverflowError):
        evaluate(parse("9 ** 9 ** 9 ** 9"), {})
    with pytest.raises(ExpressionError, match="characters"):
        parse("1+" * 200 + "1")
