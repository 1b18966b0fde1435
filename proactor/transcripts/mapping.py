"""How other people's transcripts are read: form, columns, speakers. Written as YAML, edited, passed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from proactor.files import SourceError, settings_problem
from proactor.sources import READERS
from proactor.sources.transcript import Speakers
from proactor.transcripts.encoding import check_encoding
from proactor.yaml_values import read_yaml

CORPORA = tuple(name for name in READERS if name != "jsonl")
"""Forms of public corpora, read by the readers of these names."""
FORMS = ("auto", "chat", "turns", "rows", "conversations", *CORPORA)

Form = Literal[
    "auto",
    "chat",
    "turns",
    "rows",
    "conversations",
    "sgd",
    "star",
    "abcd",
    "multiwoz",
    "smcalflow",
    "taskmaster4",
    "multidogo",
    "proactivebench",
]


class Columns(BaseModel):
    """Theirs by ours: columns of a table, or keys of JSON objects, dotted where they are nested
    ("author.name", "parts.0"). None: guessed for the first four, ``turns`` and ``calls``, else not read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    conversation: str | None = Field(default=None, description="the conversation's id")
    speaker: str | None = Field(default=None, description="who says the turn")
    text: str | None = Field(default=None, description="what is said")
    domain: str | None = Field(default=None, description="the conversation's subject")
    order: str | None = Field(default=None, description="sorts the turns of a conversation: a time, a number")
    conversations: str | None = Field(default=None, description="where in a JSON file the conversations are")
    turns: str | None = Field(default=None, description="the list of turns in a conversation")
    calls: str | None = Field(default=None, description="the tool calls of a turn, in OpenAI's form")
    tool: str | None = Field(default=None, description="the tool that a turn calls")
    arguments: str | None = Field(default=None, description="its arguments: an object, or JSON text")


class ImportMap(BaseModel):
    """``form``: "chat" (OpenAI messages), "turns" (our own), "rows" (a turn a row, of a table or of JSON
    lines), "conversations" (JSON objects with a list of turns), a corpus by name, or "auto".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form = "auto"
    columns: Columns = Columns()
    speakers: Speakers = Speakers()
    encoding: Annotated[str, AfterValidator(check_encoding)] | None = Field(
        default=None, description="default: UTF-8, a byte order mark, UTF-16, and cp1252 line by line"
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description="of a table; default: as its header shows"
    )
    same_id: Literal["error", "join", "rename"] = Field(
        default="error",
        description="a second conversation of one id: an error, the first going on, another one",
    )
    duplicates: Literal["drop", "keep"] = Field(
        default="drop", description="a conversation with the same turns and actions as another one"
    )
    broken: Literal["error", "drop"] = Field(
        default="error", description="a line or conversation that cannot be read"
    )
    empty: Literal["drop", "error"] = Field(default="drop", description="a turn without text")
    unknown_tools: Literal["error", "drop"] = Field(
        default="error", description="a call of a tool that the catalog which is given lacks"
    )
    one_speaker: Literal["drop", "keep", "error"] = Field(
        default="drop", description="a conversation without user turns, or without agent turns"
    )


def read_mapping(file: Path | None, changes: Mapping[str, Any]) -> ImportMap:
    """The mapping of a YAML file (None: an empty one) with ``changes``, of which `columns` and `speakers` are
    merged key by key. Raises SourceError for an unknown key or a wrong value.
    """
    values = read_yaml(file) if file is not None else {}
    for key, value in changes.items():
        inner = values.get(key)
        values[key] = {**inner, **value} if isinstance(value, dict) and isinstance(inner, dict) else value
    try:
        return ImportMap.model_validate(values)
    except ValidationError as error:
        where = str(file) if file is not None else "mapping"
        raise SourceError(f"{where}: {settings_problem(error, _known)[1]}") from None


def mapping_text(mapping: ImportMap, comment: str = "") -> str:
    """The mapping as YAML, without what is at its default."""
    values = mapping.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return f"{comment}{text}"


def pairs_of(text: str, option: str, known: Iterable[str]) -> list[tuple[str, str]]:
    """(ours, theirs) of "ours=theirs,ours=theirs". Raises SourceError for anything else."""
    pairs = []
    for part in text.split(","):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise SourceError(f"{option} {text}: OURS=THEIRS is wanted, with commas between (found {part!r})")
        if ours not in known:
            raise SourceError(f"{option} {text}: {ours!r} is not one of {', '.join(known)}")
        pairs.append((ours, theirs))
    return pairs


def _known(place: tuple[int | str, ...]) -> str:
    inner: dict[str, type[BaseModel]] = {"columns": Columns, "speakers": Speakers}
    kind = inner.get(str(place[0]), ImportMap) if len(place) > 1 else ImportMap
    return f"; known: {', '.join(kind.model_fields)}"
