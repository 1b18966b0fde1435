"""Tools as the agent and the annotator see them: one typed catalog for tools of any origin.

A tool states what it does to the world (`effect`) and whether it needs the user's assent (`confirm`). Both
shape when it may fire: a tool that needs assent has no ready turn before the assent.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from proactor.dialogue.dialogue import Dialogue
from proactor.engine import Template

ParameterType = Literal["string", "integer", "number", "boolean", "date", "time", "enum"]
Effect = Literal["read", "write", "irreversible"]

COMPACT = """\
{% for tool in tools -%}
{{ tool.name }}({% for p in tool.parameters %}{{ p.name }}{{ "" if p.required else "?" }}\
{{ ", " if not loop.last }}{% endfor %}){{ " ask" if tool.confirm }}
{% endfor %}"""

FULL = """\
{% for tool in tools -%}
- {{ tool.name }}: {{ tool.description or tool.name }} [{{ tool.effect }}{{ ", ask first" if tool.confirm }}]
{% for p in tool.parameters %}    {{ p.name }} ({{ p.type }}{{ "" if p.required else ", optional" }})\
{{ ": " + p.description if p.description }}{{ " one of: " + p.values | join(", ") if p.values }}
{% endfor %}{% endfor %}"""


class Parameter(BaseModel):
    """One argument of a tool. ``values``: those of an enum (required for type "enum", a hint elsewhere)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    type: ParameterType = "string"
    required: bool = True
    description: str = ""
    values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_enum(self) -> Parameter:
        if self.type == "enum" and not self.values:
            raise ValueError(f"parameter {self.name!r} is an enum without values")
        return self


class Tool(BaseModel):
    """One action that an agent can take. ``confirm``: the user must agree before it fires."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str = ""
    effect: Effect = "write"
    confirm: bool = False
    parameters: tuple[Parameter, ...] = ()

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not name.strip():
            raise ValueError("a tool without a name")
        return name

    @model_validator(mode="after")
    def _check_parameters(self) -> Tool:
        if twice := _duplicate(p.name for p in self.parameters):
            raise ValueError(f"tool {self.name!r} has the parameter {twice!r} twice")
        return self

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the required parameters."""
        return tuple(p.name for p in self.parameters if p.required)


class Catalog(BaseModel):
    """Tools by unique name, in a fixed order (the order of `render`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tools: tuple[Tool, ...]

    @model_validator(mode="after")
    def _check_tools(self) -> Catalog:
        if twice := _duplicate(t.name for t in self.tools):
            raise ValueError(f"tool {twice!r} is in the catalog twice")
        return self

    @cached_property
    def _by_name(self) -> dict[str, Tool]:
        return {tool.name: tool for tool in self.tools}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools, in order."""
        return tuple(self._by_name)

    def __len__(self) -> int:
        return len(self.tools)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Tool:
        """The tool of that name, or a KeyError with the name."""
        return self._by_name[name]

    def get(self, name: str) -> Tool | None:
        """The tool of that name, or None."""
        return self._by_name.get(name)

    def subset(self, names: Iterable[str]) -> Catalog:
        """The named tools, in the order of ``names``. Raises KeyError for an unknown one."""
        return Catalog(tools=tuple(self[name] for name in names))

    def offered_in(self, dialogue: Dialogue) -> Catalog:
        """The tools that a dialogue names, all where it names none. KeyError for one not in this catalog."""
        return self.subset(dialogue.tools) if dialogue.tools else self

    def render(self, template: str = "full") -> str:
        """Text for a prompt. ``template``: "full" (types, effects, descriptions), "compact" (one signature
        per line, ` ask` after tools that need assent), or the source of a jinja2 template over `tools`.
        Raises TemplateError for one that does not work.
        """
        source = {"full": FULL, "compact": COMPACT}.get(template, template)
        return _compile(source).render(tools=self.tools).strip()


@lru_cache(maxsize=32)
def _compile(source: str) -> Template:
    return Template(source)


def _duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
