"""The corpora of a run: its train, dev and test parts, and the catalog of all their tools."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from proactor.config import ConfigError, RunConfig
from proactor.dialogue import windows
from proactor.dialogue.catalog import Catalog
from proactor.sources import Corpus, Split, load
from proactor.sources.corpus import SelectionError, select_share, with_dialogues


def load_part(config: RunConfig, name: str) -> Corpus:
    """The corpus of `data.train`, `data.dev` or `data.test`: of the kinds that belong there, the training
    part labelled as `data.labels` says.

    Counters with point labels: ``points_logged`` references at the logged trigger, ``points_end`` at the end
    of their window.
    """
    data = config.data
    part = getattr(data, name)
    shared = part.share != (0, 1)
    limit = None if data.unseen or shared else part.limit
    try:
        corpus = _load(config, part.split, limit)
        if data.unseen:
            if data.unseen.describe_unknown(corpus) and (
                wrong := data.unseen.describe_unknown(_load(config, None, None))
            ):
                raise SelectionError(wrong)
            corpus = data.unseen.apply(corpus, name, None if shared else part.limit, data.seed)
        if shared:
            corpus = select_share(corpus, part.share, part.limit, data.seed)
    except SelectionError as error:
        raise ConfigError(f"data: {error}") from None
    if not corpus.dialogues:
        where = f"{data.source} {data.path or ''}".strip()
        why = ""
        if data.unseen:
            why = " that data.unseen leaves" + (
                ": split=null takes test dialogues of all splits" if name == "test" else ""
            )
        raise ConfigError(
            f"data.{name}: {where} has no dialogues for split={part.split}, limit={part.limit}{why}"
        )
    return with_point_labels(corpus) if name == "train" and data.labels == "points" else corpus


def _load(config: RunConfig, split: Split | None, limit: int | None) -> Corpus:
    data = config.data
    return load(data.source, data.path, split, limit, data.seed, data.keep, **data.options)


def with_point_labels(found: Corpus) -> Corpus:
    """A corpus with point labels."""
    logged = [windows.point_of(d, r)[1] for d in found.dialogues for r in d.references if r.ready is not None]
    counters = {"points_logged": sum(logged), "points_end": len(logged) - sum(logged)}
    return with_dialogues(found, map(windows.as_points, found.dialogues), counters)


def merge_catalogs(catalogs: Iterable[Catalog]) -> Catalog:
    """Tools of all catalogs; the first definition of a name stays."""
    tools: dict[str, Any] = {}
    for catalog in catalogs:
        for tool in catalog.tools:
            tools.setdefault(tool.name, tool)
    return Catalog(tools=tuple(tools.values()))
