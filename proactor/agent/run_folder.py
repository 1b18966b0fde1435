"""What an agent at work needs of a run's folder: config, tools, adapter and thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from proactor.agent.errors import AgentError
from proactor.calibration.thresholds import Thresholds
from proactor.catalogs import propose, read_catalog
from proactor.catalogs.proactor import NAME
from proactor.config import RunConfig
from proactor.config_file import load_config
from proactor.dialogue.catalog import Catalog, Tool
from proactor.files import read_validated
from proactor.training.adapters import adapter_digest, adapter_folder
from proactor.training.corpora import load_corpus, merge_catalogs

THRESHOLDS = "thresholds.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``adapter``: its folder, None for the bare model. ``thresholds``: None without calibration."""

    folder: Path
    config: RunConfig
    catalog: Catalog
    adapter: Path | None
    thresholds: Thresholds | None

    @classmethod
    def read(
        cls,
        run: str | Path,
        adapter: str = "best",
        thresholds: str | Path | None = None,
        overrides: tuple[str, ...] = (),
        *,
        greedy: bool = False,
    ) -> RunFolder:
        """The folder ``run``. Thresholds: of the file ``thresholds``, or those that the run's own calibration
        of `best` left; none for ``greedy``.

        Raises AgentError or ConfigError, one line, for a folder that is no run on dialogues, without that
        adapter, or with thresholds of tools that it does not have, or of another adapter.
        """
        folder = Path(run)
        file = folder / "config.yaml"
        if not file.is_file():
            raise AgentError(f"{folder}: no run (no config.yaml there; `proactor train` makes one)")
        kept = folder / NAME
        away = ("data.path=null",) if kept.is_file() else ()  # an agent needs no transcripts
        config = load_config(file, [*overrides, *away])
        catalog = read_catalog(kept) if kept.is_file() else _of_data(config)
        chosen = None if greedy else _thresholds(folder, adapter, thresholds)
        if chosen is not None and (gone := sorted(chosen.tools.keys() - set(catalog.names))):
            raise AgentError(
                f"{thresholds or folder / THRESHOLDS}: threshold of {gone[0]!r}, which is none of the run's "
                "tools; run `proactor calibrate` again"
            )
        loaded = adapter_folder(folder, adapter)
        if chosen is not None and chosen.adapter_digest not in ("", adapter_digest(loaded)):
            raise AgentError(
                f"{thresholds or folder / THRESHOLDS}: chosen for the adapter {chosen.adapter!r} "
                f"({chosen.adapter_digest}), not for {adapter!r} as it is now ({adapter_digest(loaded)}); "
                "run `proactor calibrate` again, or take none (--greedy)"
            )
        return cls(folder, config, catalog, loaded, chosen)

    def check_tools(self, definitions: str | Path) -> None:
        """Raise AgentError unless ``definitions``, of any form of `read_catalog`, hold the run's tools."""
        given = propose(read_catalog(definitions)).catalog
        for tool in given.tools:
            if (trained := self.catalog.get(tool.name)) is None:
                raise AgentError(
                    f"{definitions}: {tool.name!r} is not among the tools that {self.folder} was trained "
                    f"with ({', '.join(self.catalog.names)})"
                )
            if _signature(tool) != _signature(trained):
                raise AgentError(
                    f"{definitions}: {tool.name} has the parameters {_signature(tool)}, {self.folder} was "
                    f"trained with {_signature(trained)}"
                )
        if gone := [name for name in self.catalog.names if name not in given]:
            raise AgentError(f"{definitions}: lacks {gone[0]!r}, a tool that {self.folder} was trained with")


def _thresholds(folder: Path, adapter: str, given: str | Path | None) -> Thresholds | None:
    file = Path(given) if given is not None else folder / THRESHOLDS
    if given is None and (adapter != "best" or not file.is_file()):
        return None
    return read_validated(file, TypeAdapter(Thresholds))


def _of_data(config: RunConfig) -> Catalog:
    """The tools of a run of an older version, from its data."""
    return merge_catalogs(load_corpus(config, part).catalog for part in ("train", "dev", "test"))


def _signature(tool: Tool) -> str:
    return ", ".join(p.name if p.required else f"{p.name}?" for p in tool.parameters) or "(none)"
