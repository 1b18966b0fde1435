"""Templates of others: they end, they stay inside, and they give what Jinja and transformers give."""

from __future__ import annotations

import threading
from typing import Any

import jinja2
import pytest

from proactor.engine import template_limits, templates
from proactor.engine.templates import Template, TemplateError

GROW = "{%% set ns = namespace(x='aaaa') %%}{%% for i in range(99) %%}%s{%% endfor %%}"
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for i in range(99999) %}{% for j in range(99999) if j < 0 %}{% endfor %}"
    "{% endfor %}",
    "a recursive loop": "{% for i in range(2) recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}"
    "{% endif %}{% endfor %}",
    "a wide recursion": "{% for i in range(9999) recursive %}{% if loop.depth < 3 %}{{ loop(range(9999)) }}"
    "{% endif %}{% endfor %}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a filter": "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
}
HUGE = {
    "~": GROW % "{% set ns.x = ns.x ~ ns.x %}",
    "+": GROW % "{% set ns.x = ns.x + ns.x %}",
    "lists": (GROW % "{% set ns.x = ns.x + ns.x %}").replace("'aaaa'", "[1, 1]"),
    "a block": GROW % "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    "replace": GROW % "{% set ns.x = ns.x | replace('a', 'aaaa') %}",
    "a method": GROW % "{% set ns.x = ns.x.replace('a', 'aaaa') %}",
    "output": "{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "*": "{{ 'a' * 10 ** 12 }}",
    "* the other way": "{{ 10 ** 12 * [1] }}",
    "a power": "{{ 2 ** (10 ** 12) }}",
    "squares": (GROW % "{% set ns.x = ns.x * ns.x %}").replace("'aaaa'", "10"),
    "a range": "{{ range(10 ** 9) | list }}",
    "replace at once": "{{ ('a' * 9999).replace('a', 'b' * 9999) }}",
    "join at once": "{{ ('b' * 9999).join(['a'] * 9999) }}",
    "the filter join": "{{ (['a'] * 9999) | join('b' * 9999) }}",
    "join of an iterator": "{{ ([{'x': 'a' * 999999}] * 9999) | map(attribute='x') | join }}",
    "indent": "{{ ('a\\n' * 9999) | indent(9999) }}",
    "wordwrap": "{{ ('a' * 9999) | wordwrap(1, wrapstring='b' * 9999) }}",
    "many widths": "{{ '%999999d' * 9 % ((1,) * 9) }}",
    "a name again and again": "{{ '%(x)s' * 9999 % {'x': 'a' * 9999} }}",
    "digits": "{{ 1.5 | round(10 ** 9, 'ceil') }}",
}
FOLD = (
    "{% set a = ['x'] * 999 %}{% set b = [a] * 999 %}{% set c = [b] * 999 %}{% set d = [[['x'] * 999] * 999]"
)
FOLD += " * 999 %}"
FOLDED = {  # a thousand times a thousand times a thousand, in three small lists
    **{
        f: f"{{{{ c | {f} }}}}"
        for f in ("string", "tojson", "pprint", "e", "upper", "trim", "sort", "unique | list")
    },
    **{t: f"{{{{ c {t} d }}}}" for t in ("==", "<", "in", "is eq", "~")},
    "output": "{{ c }}",
    "%": "{{ '%s' % c }}",
    "format": "{{ '{}'.format(c) }}",
    "format by repr": "{{ '{!r}'.format(c) }}",
    "a dict": "{{ {'a': c} }}",
    "views": "{{ {'a': c}.values() }}",
    "a namespace": "{% set ns = namespace(x=c) %}{{ [ns] }}",
    "count": "{{ [c].count(d) }}",
    "select": "{{ [c] | select('==', d) | list }}",
    "changed": "{% for x in [c, d] %}{{ loop.changed(x) }}{% endfor %}",
    "a key": "{% set a = (1,) * 999 %}{% set b = (a,) * 999 %}{% set c = (b,) * 999 %}{{ {}[c] }}",
    "a key of a dict": "{% set a = (1,) * 999 %}{% set b = (a,) * 999 %}{% set c = (b,) * 999 %}{{ {c: 1} }}",
    "raise": "{{ raise_exception(c) }}",
}
SLOW = {  # few steps, each long
    "in": "{% if 'b' in s %}{% endif %}",
    "==": "{% if s == s ~ '' %}{% endif %}",
    "a method": "{% set x = s.count('aab') %}",
    "a slice": "{% set x = s[1:] %}",
    "a slice of a list": "{% set x = l[1:] %}",
    "lines of a template": "{% set x = i %}" * 10_000,
}
WIDE = {
    "center": "{{ 'a' | center(10 ** 12) }}",
    "ljust": "{{ 'a'.ljust(10 ** 12) }}",
    "% with a width": "{{ '%-099999999d' % 1 }}",
    "% with digits": "{{ '%(x)3.99999999f' % {'x': 1} }}",
    "% with a width among the values": "{{ '%*d' % (10 ** 8, 1) }}",
    "format": "{{ '{:>99999999}'.format(1) }}",
    "format with a width among the values": "{{ '{:>{}}'.format(1, 10 ** 8) }}",
    "format_map": "{{ '{x:>99999999}'.format_map({'x': 1}) }}",
    "the filter format": "{{ '%99999999d' | format(1) }}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_what_runs_on_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MOST_STEPS", 20_000)
    with pytest.raises(TemplateError, match="more than 20000 steps"):
        Template(source).render()


@pytest.mark.parametrize("source", HUGE.values(), ids=HUGE)
def test_what_grows_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match=r"more than|at most|too big|larger") as caught:
        Template(source).render()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("source", FOLDED.values(), ids=FOLDED)
def test_a_list_that_is_endless_as_text_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match=r"a text or list of \d+, at most|a namespace where a text"):
        Template(FOLD + source, chat=True).render()


@pytest.mark.parametrize("source", SLOW.values(), ids=SLOW)
def test_steps_that_take_long_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "LONGEST_TIME", 0.2)
    monkeypatch.setattr(template_limits, "MOST_STEPS", 200_000)
    loop = "{% set s = 'a' * 4000000 %}{% set l = [1] * 4000000 %}{% for i in range(99999) %}"
    with pytest.raises(TemplateError, match=r"more than (0\.2 s|200000 steps): does it end"):
        Template(loop + source + "{% endfor %}").render()


def test_a_long_dialogue_is_far_from_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 messages of 800 characters, gathered in one text, and looked at in each of them."""
    monkeypatch.setattr(template_limits, "LONGEST_TIME", float("inf"))
    source = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% if m == messages[-1] or 'x' in m.content %}"
        "{% set ns.t = ns.t ~ m.content | trim %}{% endif %}{{ messages | length }}{% endfor %}{{ ns.t }}"
    )
    messages = [{"role": "user", "content": f"{i}x" * 200} for i in range(500)]
    assert Template(source, chat=True).render(messages=messages).endswith("499x")


@pytest.mark.parametrize("source", WIDE.values(), ids=WIDE)
def test_a_width_is_refused_before_its_text_is_made(source: str) -> None:
    with pytest.raises(TemplateError, match=f"to more than {template_limits.LONGEST_TEXT}"):
        Template(source).render()


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ tools.append(1) }}",
        "{{ tools[0].update(a=1) }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_what_reaches_out_is_stopped(source: str, chat: bool) -> None:
    tools: list[Any] = [{"a": 0}]
    with pytest.raises(TemplateError) as caught:
        Template(source, chat=chat).render(tools=tools)
    assert tools == [{"a": 0}] and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "should be a text, not 5"),
        ("a\n{% for %}", "line 2: Expected an expression"),
        ("{{ missing }}", "'missing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ (" + "(" * 5000 + "1" + ")" * 5000 + ") }}", "nested too deeply"),
        ("{% if 1 %}" * 200 + "{% endif %}" * 200, "nested too deeply"),
        ("{{ " + "9" * 5000 + " }}", "Exceeds the limit (4300 digits)"),
        ("x" * (templates.LONGEST_SOURCE + 1), "262145 characters, at most 262144 are read"),
    ],
    ids=str,
)
def test_what_does_not_work_is_one_line(source: Any, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source).render()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "source",
    [
        "{% for x in xs %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ ', ' if not loop.last }}{% endfor %}",
        "{% for x in xs if x > 1 %}{{ loop.last }}{{ x }}{% else %}none{% endfor %}{{ xs is defined }}",
        "{% for x in [] %}{% else %}no{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}",
        "{% for c in 'abc' %}{{ loop.cycle('x', 'y') }}{{ loop.changed(c) }}{% endfor %}",
        "{% for x in tree recursive %}{{ x.n }}{{ loop.depth }}{{ loop(x.s) if x.s }}{% endfor %}",
        "{{ xs | map('string') | join('-') }}{{ xs | sum }}{{ xs | sort(reverse=true) | first }}",
        "{% macro m(a, b=2) %}{{ a + b }}{{ caller() if caller is defined }}{% endmacro %}{{ m(1) }}"
        "{% call m(1) %}x{% endcall %}",
        "{% set y %}{{ xs[0] }}{% endset %}{{ y | length }}{% filter upper %}ab{% endfilter %}{{ 'a' ~ 1 }}",
        "{{ '%05.1f|%s' % (1.25, 'x') }}{{ 2 ** 5 * 3 }}{{ 'ab' * 2 }}{{ '{:>4}'.format(7) }}{{ 7 % 4 }}",
        "{{ '{:{}}{a}'.format(7, 5, a=1) }}{{ '{x}'.format_map({'x': 1}) }}{{ '20240101 is %d' | format(1) }}"
        "{{ '%d * %d' % (99999999, 2) }}",
    ],
)
def test_what_works_gives_what_jinja_gives(source: str) -> None:
    values = {"xs": [1, 2, 3], "tree": [{"n": 1, "s": [{"n": 2, "s": []}]}, {"n": 3, "s": []}]}
    assert Template(source).render(**values) == jinja2.Template(source).render(**values)


def test_each_rendering_has_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MOST_STEPS", 150)
    template = Template("{% for i in range(90) %}{{ i }}{% endfor %}")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(template.render())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [template.render()] * 4
