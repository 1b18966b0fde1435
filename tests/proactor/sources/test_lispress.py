"""The Lispress reader: what it reads, the round trip with `write`, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.sources import lispress
from proactor.sources.lispress import LispressError, Node

symbols = st.text(alphabet="abcXYZ.?&=~:+-0123456789L_", min_size=1, max_size=8)
quoted = st.text(max_size=12).map(lambda t: lispress._quote(f'"{_escaped(t)}"', 0))
leaves = symbols | quoted


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def lists(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    plain = st.lists(inner, max_size=4).map(tuple)
    return plain | inner.map(lambda node: (lispress.META, node))


def test_reads_a_program() -> None:
    program = '(Yield (^(Event) Find (Event.subject_? (?= "a (quoted) \\"one\\"")) :n 3L))'
    tree = lispress.read(program)
    assert tree == (
        "Yield",
        (("^", ("Event",)), "Find", ("Event.subject_?", ("?=", '"a (quoted) \\"one\\""')), ":n", "3L"),
    )
    assert lispress.write(tree) == program
    name, args = lispress.call(tree[1])
    assert (name, args[1:]) == ("Find", ("3L",))  # without its type and the name of its argument
    assert lispress.text('"a \\"one\\""') == 'a "one"' and lispress.text("a") is None
    assert lispress.read('#(String "a")') == ("String", '"a"') and lispress.call("a") == ("", ())
    assert lispress.call((("a",), "b")) == ("", (("a",), "b"))


@given(st.recursive(leaves, lists, max_leaves=20))
def test_reads_what_it_writes(tree: Node) -> None:
    assert lispress.read(lispress.write(tree)) == tree


@given(st.text(alphabet='()"^#\\ aL1\n', max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        tree = lispress.read(text)
    except LispressError as error:
        assert str(error).startswith("position ")
    else:
        assert lispress.read(lispress.write(tree)) == tree


@pytest.mark.parametrize(
    ("program", "what"),
    [
        ("", "0: 0 expressions"),
        ("a b", "3: 2 expressions"),
        ("(a", "2: 1 '\\(' without"),
        ("a)", "1: '\\)' without"),
        ('"a', "0: a text without its end"),
        ('"\\q"', "0: a text with a bad escape"),
        ("(a ^)", "4: '\\^' without"),
        ("^", "1: 1 expressions"),
        ("(" * 300, "200: lists nested deeper"),
    ],
)
def test_refusals_name_the_position(program: str, what: str) -> None:
    with pytest.raises(LispressError, match=f"position {what}"):
        lispress.read(program)
