"""Templates of others: they end, they stay inside, and they give what Jinja and transformers give."""

from __future__ import annotations

import threading
from typing import Any

import jinja2
import pytest

from proactor.engine import templates
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
    monkeypatch.setattr(templates, "MOST_STEPS", 20_000)
    with pytest.raises(TemplateError, match="more than 20000 steps"):
        Template(source).render()


@pytest.mark.parametrize("source", HUGE.values(), ids=HUGE)
def test_what_grows_is_stopped(source: str) -> None:
    with pytest.raises(TemplateError, match=r"more than|at most|too big|larger") as caught:
        Template(source).render()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("source", WIDE.values(), ids=WIDE)
def test_a_width_is_refused_before_its_text_is_made(source: str) -> None:
    with pytest.raises(TemplateError, match="to more than 16777216"):
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
        ("x" * (templates.LONGEST_SOURCE + 1), "1048577 characters, at most 1048576 are read"),
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
    monkeypatch.setattr(templates, "MOST_STEPS", 150)
    template = Template("{% for i in range(90) %}{{ i }}{% endfor %}")
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(template.render())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [template.render()] * 4
