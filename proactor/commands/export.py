"""``proactor export``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proactor.commands.common import Adapter, UsageError, console, terminal

if TYPE_CHECKING:
    from proactor.engine import Engine


class Format(StrEnum):
    """What is written."""

    PEFT = "peft"
    MERGED = "merged-bf16"


def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_ADAPTER", help="a run's folder, or one with an adapter", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="a new folder", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="peft: the adapter; merged-bf16: a whole model in bfloat16")
    ] = Format.PEFT,
    adapter: Adapter = "best",
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="the model that will serve: named in a PEFT folder, or merged into; default: the one that "
            "the adapter names, or the run's",
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="the model that was trained on, 4-bit or to be made so: report how far the export is from "
            "it on --texts",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="a text a line; .jsonl: objects with text or messages"),
    ] = None,
) -> None:
    """Write a trained adapter for other engines: as a PEFT folder, or merged into its base.

    Tokenizer, chat template and end ids come along. A folder that could not be finished is removed.
    """
    if (check is None) != (texts is None):
        raise UsageError("--check BASE and --texts FILE: one goes with the other")
    folder, model = _source(source, adapter, base)
    from proactor.engine import export_merged, export_peft
    from proactor.evaluation.drift import Drift, Scores, read_texts

    prompts = read_texts(texts) if texts is not None else []
    with terminal() as ui:
        if form is Format.PEFT:
            export_peft(folder, model, out)
        else:
            export_merged(folder, model, out, progress=lambda done, total: ui.substep("merging", done, total))
    console.print(f"{out}: {form.value} of {folder}, on {model}", markup=False, soft_wrap=True)
    if check is None:
        return
    with _loaded(check, folder, "nf4") as engine:
        sequences = [engine.encode(prompt) for prompt in prompts]
        trained = Scores.of(engine, sequences)
    merged = form is Format.MERGED
    with _loaded(str(out) if merged else model, None if merged else out, "none") as engine:
        serving = Scores.of(engine, sequences)
    console.print(f"from {check} in 4 bits to this export:", markup=False, soft_wrap=True)
    console.print(str(Drift.between(trained, serving)), markup=False, soft_wrap=True)


def _source(source: Path, adapter: str, base: str | None) -> tuple[Path, str]:
    """(the adapter's folder, the model that serves it)."""
    from proactor.engine import base_model_of, has_adapter
    from proactor.training.adapters import adapter_folder
    from proactor.training.run_model import CONFIG, run_model

    if (source / CONFIG).is_file():
        folder = adapter_folder(source, adapter)
        if folder is None:
            raise UsageError(f"--adapter {adapter}: there is nothing to export of the bare model")
        return folder, base or run_model(source)[1]
    if not source.exists():
        raise UsageError(f"{source}: no such folder")
    if adapter != "best":
        raise UsageError(f"--adapter {adapter}: {source} is no run, of whose adapters one could be chosen")
    if not has_adapter(source):
        raise UsageError(f"{source}: neither a run's folder nor one with an adapter")
    model = base or base_model_of(source)
    if model is None:
        raise UsageError(f"{source}: the adapter names no model; give --base MODEL")
    return source, model


@contextmanager
def _loaded(model: str, adapter: Path | None, quantization: str) -> Iterator[Engine]:
    from proactor.engine import Engine, read_lora

    lora = None if adapter is None else read_lora(adapter)
    with terminal() as ui:
        engine = Engine.load(
            model,
            lora=lora,
            quantization=quantization,
            progress=lambda done, total: ui.substep(f"loading {model}", done, total),
        )
    if adapter is not None:
        engine.load_adapter(adapter)
    yield engine
    engine.release()
