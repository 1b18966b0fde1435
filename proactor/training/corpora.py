"""What a run is made of: its train, dev and test corpora, the catalog of their tools, its prompt style."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.dialogue import windows
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import PromptStyle
from proactor.engine import TemplateError
from proactor.sources import Corpus, Split, load, options_of
from proactor.sources.corpus import SelectionError, select_share, with_dialogues


def load_corpus(config: RunConfig, name: str) -> Corpus:
    """The corpus of `data.train`, `data.dev` or `data.test`; `data.labels` applies to the training part.

    Counters with point labels: ``points_logged`` references at the logged trigger, ``points_end`` at the end
    of their window. Raises ConfigError where the part is empty or names what the corpus does not have, and
    for a training part whose windows are all unknown.
    """
    data = config.data
    part = getattr(data, name)
    shared = part.share != (0, 1)
    limit = None if data.unseen or shared else part.limit
    try:
        corpus = _load(config, part.split, limit)
        if data.unseen:
            # A name that this split does not have may be in another one.
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
        why = " that data.unseen leaves" if data.unseen else ""
        if data.unseen and name == "test":
            why += ": split=null takes test dialogues of all splits"
        raise ConfigError(
            f"data.{name}: {where} has no dialogues for split={part.split}, limit={part.limit}{why}"
        )
    if name != "train":
        return corpus
    actions = [reference for dialogue in corpus.dialogues for reference in dialogue.references]
    if actions and all(action.ready is None for action in actions):
        raise ConfigError(
            f"data.train: none of its {len(actions)} actions has a known window, so nothing tells when to "
            "act; `proactor annotate` finds the windows of transcripts"
        )
    return with_point_labels(corpus) if data.labels == "points" else corpus


def _load(config: RunConfig, split: Split | None, limit: int | None) -> Corpus:
    data = config.data
    return load(data.source, data.path, split, limit, data.seed, data.keep, **options_of(data.options))


def with_point_labels(corpus: Corpus) -> Corpus:
    """The corpus with every known window narrowed to a point; counters as in `load_corpus`."""
    known = [(d, r) for d in corpus.dialogues for r in d.references if r.ready is not None]
    logged = sum(windows.point_of(dialogue, reference)[1] for dialogue, reference in known)
    counters = {"points_logged": logged, "points_end": len(known) - logged}
    return with_dialogues(corpus, map(windows.as_points, corpus.dialogues), counters)


def merge_catalogs(catalogs: Iterable[Catalog]) -> Catalog:
    """The tools of all catalogs; of several definitions of a name, the first."""
    tools: dict[str, Any] = {}
    for catalog in catalogs:
        for tool in catalog.tools:
            tools.setdefault(tool.name, tool)
    return Catalog(tools=tuple(tools.values()))


def prompt_style(config: RunConfig, catalog: Catalog) -> PromptStyle:
    """The style of a config's prompts. ConfigError for a template `prompt.catalog` that does not work."""
    style = PromptStyle(**config.prompt.model_dump(exclude_none=True))
    try:
        catalog.render(style.catalog)
    except TemplateError as error:
        raise ConfigError(f"prompt.catalog: {error}") from None
    return style
