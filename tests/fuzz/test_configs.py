"""Run configs, overrides and templates with something wrong in them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import yaml

from proactor.config_file import load_run
from proactor.engine import Template
from tests.fuzz.harness import fuzz
from tests.fuzz.mutations import ODD, SNIPPETS, dump, misplace, spoil_bytes, spoil_text, spoil_tree

NAMES = "abcdefghijklmnopqrstu"
BOMBS = (
    "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise(NAMES)),
    "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise(NAMES)),
    *("a: &a [*a]\n", "a: &a {b: *a}\n", "? [a]\n: b\n", "? {a: b}\n: c\n", "? &a [*a]\n: b\n"),
    *(f"d: {value}\n" for value in ("2026-02-30", "!!timestamp x", "!!int x", "!!int ''", "!!float x")),
    *(f"d: {value}\n" for value in ("!!bool x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs 5")),
    *(f"d: {value}\n" for value in ("9" * 5000, "1" * 100000, f"0x{'f' * 5000}", f"{'1:' * 300}1")),
    *(
        f"d: {value}\n"
        for value in ("[" * 2000, "- " * 2000, '"a\\0b"', "!!python/object/apply:os.system [ls]")
    ),
    *("{a: b}: c\n", "<<: 5\n", "<<: [5]\n", "--- a\n--- b\n", "%YAML 9.9\n--- a\n"),
)
TEMPLATES = (
    "{% for t in tools -%}\n{{ t.name }}({% for p in t.parameters %}{{ p.name }}{{ ', ' if not loop.last }}"
    "{% endfor %})\n{% endfor %}",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(4) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(9) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    "{{ ns.x }}",
    "{% for i in range(9) recursive %}{{ i }}{% if i %}{{ loop(range(i)) }}{% endif %}{% endfor %}",
    "{{ 'a' * 9 }}{{ 9 ** 9 }}{{ '%9d' % 9 }}{{ 'a' | center(9) }}{{ 'a'.ljust(9) }}"
    "{{ range(9) | join('-') }}",
    "{% set a = [1] * 9 %}{% set b = [a] * 9 %}{% set c = [b, b] * 9 %}{{ c == [[a] * 9] * 9 }}"
    "{{ c | string }}{{ c ~ (b,) }}{{ '%s' % c }}{{ {'a': c}.values() }}{{ c }}",
    "{% set s = 'a' * 9 %}{% for i in range(9) %}{{ s.count('b') }}{{ 'b' in s }}{{ s[i:] }}{{ s < s[1:] }}"
    "{{ s.replace('a', s) }}{{ ([s] * 9) | join(s) }}{{ s | indent(9) }}{% endfor %}",
    "{% set x %}{{ 'ab' | replace('a', 'bb') }}{% endset %}{{ x | tojson }}{% filter upper %}{{ x }}"
    "{% endfilter %}",
)


def test_configs(repo_root: Path) -> None:
    sources = [file.read_text() for file in sorted((repo_root / "configs").glob("*.yaml"))]

    def case(draw: Random, folder: Path) -> object:
        file, text = folder / "run.yaml", draw.choice(sources)
        kind = draw.randrange(6)
        if kind < 2:
            file.write_bytes(dump(draw, spoil_tree(draw, yaml.safe_load(text))))  # JSON is YAML
        elif kind < 4:
            file.write_bytes(spoil_bytes(draw, text.encode()))
        else:
            lines = text.splitlines(keepends=True)
            lines.insert(draw.randrange(len(lines) + 1), draw.choice(BOMBS))
            file.write_text("".join(lines))
        if draw.random() < 0.03:
            misplace(draw, file)
        return load_run(file, _overrides(draw))

    fuzz("configs", case, 100)


def _overrides(draw: Random) -> list[str]:
    keys = (
        "name",
        "model",
        "seed",
        "data.path",
        "data.options",
        "grpo.lr",
        "grpo.sampling",
        "runs",
        "x.y",
        "",
    )
    odd: list[Any] = [*ODD, *(s.decode("latin-1") for s in SNIPPETS), *BOMBS]
    return [f"{draw.choice(keys)}={draw.choice(odd)!s:.3000}" for _ in range(draw.choice((0, 0, 1, 2)))]


def test_templates() -> None:
    tools = [{"name": "book", "parameters": [{"name": "day", "values": ["Monday"]}]}]

    def case(draw: Random, folder: Path) -> object:
        text = draw.choice(TEMPLATES)
        if draw.random() < 0.4:  # ten times the digits: loops and texts without end
            text = text.replace("9", "9" * draw.randrange(2, 12)).replace("4", "4" * draw.randrange(1, 4))
        return Template(spoil_text(draw, text), chat=draw.random() < 0.5).render(tools=tools, messages=[])

    fuzz("templates", case, 150)
