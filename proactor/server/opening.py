"""What ``proactor serve`` was given: a run, or a model with or without an adapter; and the engine for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from proactor.agent import Agent
from proactor.agent.run_folder import RunFolder
from proactor.engine import Engine, EngineConfig, LoRA, has_adapter, read_lora
from proactor.server.run import ServeError
from proactor.training.adapters import OWN, adapter_folder
from proactor.training.run_model import CONFIG, run_model
from proactor.yaml_values import parse_yaml


@dataclass(frozen=True, slots=True)
class Opening:
    """A model (folder or hub id), its name, how it is run, and the adapter with its name, if any.

    ``run``: the folder of a run; ``own``: which of its own adapters it is, "" for another one.
    """

    model: str
    base: str
    engine: EngineConfig
    lora: LoRA | None = None
    folder: Path | None = None
    adapter: str | None = None
    seed: int = 0
    run: Path | None = field(default=None)
    own: str = ""

    @classmethod
    def of(cls, target: str, adapters: Sequence[str] = (), overrides: Sequence[str] = ()) -> Opening:
        """Of a run's folder, or of a model.

        ``adapters``: none, one ``NAME=FOLDER``, or for a run one of its own (best unless it says otherwise).
        ``overrides``: ``engine.KEY=VALUE``. Raises ServeError, and what reading a run does.
        """
        if len(adapters) > 1:
            raise ServeError(
                f"--adapter {adapters[1]}: one adapter is served; POST /v1/load_lora_adapter swaps it"
            )
        given = _engine_options(overrides)
        folder = Path(target)
        if (folder / CONFIG).is_file():
            return cls._of_run(folder, adapters[0] if adapters else "best", given)
        opening = cls(target, folder.resolve().name if folder.is_dir() else target, _engine_config({}, given))
        return opening._with(adapters[0]) if adapters else opening

    @classmethod
    def _of_run(cls, run: Path, adapter: str, given: Mapping[str, Any]) -> Opening:
        config, model = run_model(run)
        base = Path(model).resolve().name if Path(model).is_dir() else model
        if base == run.resolve().name:  # as the guide's own: runs/support on models/support
            base = f"{base}-base"
        engine = _engine_config(config.engine.model_dump(), given)
        opening = cls(model, base, engine, seed=config.seed, run=run)
        if adapter not in OWN:
            return opening._with(adapter)
        folder = adapter_folder(run, adapter)
        if folder is None:
            return replace(opening, own=adapter)
        name = run.resolve().name
        return cls(model, base, engine, config.lora, folder, name, config.seed, run, adapter)

    def _with(self, adapter: str) -> Opening:
        name, equals, path = adapter.partition("=")
        folder = Path(path)
        if not equals or not name or not path:
            own = f"{', '.join(OWN)}, or " if self.run is not None else ""
            raise ServeError(f"--adapter {adapter}: write {own}NAME=FOLDER")
        if name == self.base:
            raise ServeError(f"--adapter {adapter}: {name!r} is the model's own name; give another one")
        if not folder.is_dir() or not has_adapter(folder):
            raise ServeError(f"--adapter {adapter}: {folder}: no adapter there")
        return Opening(
            self.model, self.base, self.engine, read_lora(folder), folder, name, self.seed, self.run
        )

    def load(self, progress: Callable[[int, int], None] | None = None) -> Engine:
        """The engine, with the adapter. Raises what `Engine.load` and `Engine.load_adapter` do."""
        engine = Engine.load(self.model, self.engine, lora=self.lora, seed=self.seed, progress=progress)
        if self.folder is not None:
            engine.load_adapter(self.folder)
        return engine

    def agent(self, engine: Engine) -> Agent | None:
        """The agent of a run with an adapter of its own, on the engine of `load`; None for anything else.

        Raises ProactorError, one line, for a run without dialogues, and one whose tools or thresholds cannot
        be used.
        """
        if self.run is None or not self.own:
            return None
        return Agent.on(engine, RunFolder.read(self.run, self.own))


def _engine_options(overrides: Sequence[str]) -> dict[str, Any]:
    options = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        section, _, name = key.partition(".")
        if section != "engine" or not equals or not name:
            raise ServeError(f"{override!r}: write engine.KEY=VALUE, as in a config's section engine")
        options[name] = parse_yaml(text, f"override {override}")
    return options


def _engine_config(config: Mapping[str, Any], given: Mapping[str, Any]) -> EngineConfig:
    return EngineConfig.from_options({**config, **given})
