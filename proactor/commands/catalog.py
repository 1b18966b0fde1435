"""``proactor catalog``: tool definitions of any format as one catalog, with proposed effects to edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from proactor.commands.common import TrustCode, UsageError, console

if TYPE_CHECKING:
    from proactor.catalogs import Proposal, Reading
    from proactor.dialogue.catalog import Catalog

NAME = "catalog.json"
FORMATS = ("proactor", "openai", "jsonschema", "sgd", "star", "python")
"""Names of the formats, for help: a copy of `catalogs.FORMATS`, which takes long to import."""

REMARKS = {
    "flattened": "objects became one parameter a field (address.street)",
    "object_as_text": "open or deeper objects are text",
    "array_as_text": "lists are text",
    "union_as_text": "parameters of several types are text",
    "untyped_as_text": "parameters without a type are text",
    "datetime_as_text": "date-times are text",
    "branches_joined": "what only an alternative or a condition lists is optional",
    "unlisted_left_out": "what an object takes without listing it is left out",
    "variadic_left_out": "*args and **kwargs are left out",
}
"""The text of each kind of remark that a reader makes."""


def catalog(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="a file, a folder, or module:path.py", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help=f"write the catalog; a folder gets {NAME}"),
    ] = None,
    format: Annotated[str, typer.Option(help=f"auto, {', '.join(FORMATS)}")] = "auto",
    render: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE", help="print the tools as the prompt shows them: full, compact, or a .j2 file"
        ),
    ] = "",
    trust_code: TrustCode = False,
    force: Annotated[bool, typer.Option("--force", help="replace an existing file")] = False,
) -> None:
    """Read tools of any format, propose for each its effect and whether it needs assent.

    With --output, writes a catalog to edit.
    """
    if format not in ("auto", *FORMATS):
        raise UsageError(f"--format {format}: not one of auto, {', '.join(FORMATS)}")
    file = _target(output, force)
    from proactor.catalogs import propose, read, write_catalog
    from proactor.sole_writer import sole_writer

    reading = read(source, format, trust_code=trust_code)  # type: ignore[arg-type]  # checked above
    proposal = propose(reading.catalog)
    if file is not None:
        with sole_writer(file.parent):
            _target(file, force)  # another process may have written it meanwhile
            write_catalog(proposal.catalog, file)
    if render:
        console.print(_render(proposal.catalog, render), markup=False, soft_wrap=True)
        return
    console.print(table(proposal))
    _print_remarks(reading)
    console.print(_next_steps(proposal, file), markup=False, soft_wrap=True)


def _target(output: Path | None, force: bool) -> Path | None:
    """The file to write. Raises UsageError when it exists, before anything is read."""
    file = output / NAME if output is not None and output.is_dir() else output
    if file is not None and file.exists() and not force:
        raise UsageError(f"{file}: exists already, perhaps with edits of yours; --force replaces it")
    return file


def table(proposal: Proposal) -> Table:
    """The tools with effect and assent; a star marks a proposal, a question mark a guess."""
    shown = Table("tool", "parameters", "effect", "asks", "why")
    for suggestion in proposal.suggestions:
        tool = proposal.catalog[suggestion.name]
        names = ", ".join(p.name if p.required else f"{p.name}?" for p in tool.parameters)
        sign, style = "*", "yellow" if suggestion.proposed_fields else ""
        if suggestion.guess:
            sign, style = "?", "red"
        effect = tool.effect + (sign if "effect" in suggestion.proposed_fields else "")
        asks = ("yes" if tool.confirm else "no") + (sign if "confirm" in suggestion.proposed_fields else "")
        shown.add_row(
            Text(tool.name),
            Text(names),
            Text(effect, style=style),
            Text(asks, style=style),
            Text(suggestion.reason, style=style),
        )
    return shown


def _print_remarks(reading: Reading) -> None:
    for kind, count in sorted(reading.counters.items()):
        first = next(remark for remark in reading.remarks if remark.kind == kind)
        place = f"{first.parameter!r} of {first.tool!r}" if first.parameter else repr(first.tool)
        console.print(
            f"{count} x {REMARKS[kind]}, e.g. {place}",
            markup=False,
            soft_wrap=True,
        )


def _next_steps(proposal: Proposal, file: Path | None) -> str:
    """How many tools have a proposal, and what to do next."""
    proposed, guesses = len(proposal.open_suggestions), sum(s.guess for s in proposal.suggestions)
    count = f"{len(proposal.suggestions)} tools; "
    if not proposed:
        count += "nothing is proposed, all of them say what they do"
    else:
        count += f"{proposed} with a proposal (*)" + (f", {guesses} of them a guess (?)" if guesses else "")
    if file is None:
        return f"{count}. Nothing was written: -o {NAME} writes the catalog."
    lines = [f"{count}. Written: {file}"]
    if proposed:
        lines.append(
            "Read it through: `effect` (read, write, irreversible) and `confirm` (true: never without the "
            "user's assent) decide when a tool may fire."
        )
    return "\n".join([*lines, f"Then: proactor annotate SOURCE --catalog {file}"])


def _render(catalog: Catalog, template: str) -> str:
    """The catalog as in a prompt. UsageError names the template when it does not work."""
    from proactor.engine import TemplateError
    from proactor.files import SourceError, read_text

    if template in ("full", "compact"):
        return catalog.render(template)
    try:
        text = read_text(Path(template))
    except SourceError as error:
        raise UsageError(
            f"--render {template}: neither full, compact nor a template that can be read ({error})"
        ) from None
    try:
        return catalog.render(text)
    except TemplateError as error:
        raise UsageError(f"{template}: {error}") from None
