"""`Models`: the names that a request may give, and the adapter behind one of them, which can be swapped.

That is the engine's first adapter; the others stay. A request by its name holds it until it is answered; a
swap waits for those that do, and refuses others meanwhile, so that no answer comes from another adapter than
the one it names. The engine loads it when nothing is sampled at all: the swap waits for all other models'
answers then, and new ones wait behind it. It waits `PATIENCE` at the most.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from proactor.engine import Engine
from proactor.server.refusals import Refused, busy

NAME = re.compile(r"[\w.:-]{1,128}")
PATIENCE = 60.0
"""Seconds that a swap waits for answers, and others for it."""


class Models:
    """The model ``base``, ``adapter`` where the engine's first adapter has a name, and the other adapters.

    ``root``: the folder that adapters may be loaded from while serving; None: none may.
    """

    def __init__(
        self, engine: Engine, base: str, adapter: str | None = None, root: Path | None = None
    ) -> None:
        self.engine, self.base, self.adapter = engine, base, adapter
        self.root = None if root is None else root.resolve()
        self._fixed: dict[str, bool | str] = {name: name for name in engine.adapters[1:]} | {base: False}
        self._users = {True: 0, False: 0}  # of the adapter that may be swapped, and of all else
        self._changed = asyncio.Condition()
        self._changing = self._held = False
        self._since = int(time.time())

    @asynccontextmanager
    async def use(self, name: Any) -> AsyncIterator[bool | str]:
        """A block that uses a model; gives its `Sampling.adapter`. Raises Refused for an unknown name."""
        if isinstance(name, str) and name in self._fixed:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._held)
            async with self._using(False):
                yield self._fixed[name]
            return
        if self._changing:
            raise busy("an adapter is being loaded; try again in a second", 503)
        if self.adapter is None or name != self.adapter:
            raise Refused(404, f"model {name!r} is none of {self._names()}", "model_not_found")
        async with self._using(True):
            yield True

    @asynccontextmanager
    async def _using(self, adapter: bool) -> AsyncIterator[None]:
        self._users[adapter] += 1
        try:
            yield
        finally:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                async with self._changed:
                    self._changed.notify_all()

    def cards(self) -> list[dict[str, Any]]:
        """The models as ``/v1/models`` lists them, with vLLM's ``max_model_len``."""
        card = {"object": "model", "created": self._since, "owned_by": "proactor"}
        card["max_model_len"] = self.engine.context_length
        cards = [{"id": self.base, **card, "parent": None}]
        adapters = [self.adapter, *self.engine.adapters[1:]]
        cards += [{"id": name, **card, "parent": self.base} for name in adapters if name is not None]
        return cards

    async def load(self, name: Any, path: Any) -> str:
        """Load the adapter in a folder below ``root`` under a name, in place of the present one.

        Returns the name that it replaced, "" for none. Raises Refused, also where answers take longer than
        `PATIENCE`, and what `Engine.load_adapter` does; the present one then stays.
        """
        root = self._open_root()
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in self._fixed:
            raise Refused(400, f"lora_name {name!r}: letters, digits, . : _ and -, and not another model's")
        folder = _inside(root, path)
        async with self._swapping(engine=True):
            await asyncio.to_thread(self.engine.load_adapter, folder)
            before, self.adapter = self.adapter, name
        return before or ""

    async def unload(self, name: Any) -> None:
        """Forget the name of the adapter. Raises Refused where it is another one's."""
        self._open_root()
        if self.adapter is None or name != self.adapter:
            raise Refused(404, f"lora_name {name!r}: no such adapter is loaded", "model_not_found")
        async with self._swapping(engine=False):
            self.adapter = None

    @asynccontextmanager
    async def _swapping(self, engine: bool) -> AsyncIterator[None]:
        """A block without answers of the adapter, and with ``engine`` without any."""
        if self._changing:
            raise busy("an adapter is being loaded; try again in a second", 409)
        self._changing = True
        try:
            try:
                async with asyncio.timeout(PATIENCE), self._changed:
                    await self._changed.wait_for(lambda: not self._users[True])
                    self._held = engine
                    await self._changed.wait_for(lambda: not (engine and self._users[False]))
            except TimeoutError:
                raise busy(f"answers take longer than {PATIENCE:g} s; the adapter stays", 409) from None
            yield
        finally:
            self._changing = self._held = False
            async with self._changed:
                self._changed.notify_all()

    def _open_root(self) -> Path:
        if self.root is None:
            raise Refused(403, "adapters are not swapped here: start with --adapters-from FOLDER")
        return self.root

    def _names(self) -> str:
        return ", ".join(repr(card["id"]) for card in self.cards())


def _inside(root: Path, path: Any) -> Path:
    """The folder ``path``, relative to the root or in it, links followed."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise Refused(400, f"lora_path should be the path of a folder, not {path!r:.80}")
    folder = (root / path).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise Refused(400, f"lora_path {path!r}: no folder below the one that adapters are loaded from")
    return folder
