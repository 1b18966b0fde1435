"""`Weights`: the base with one of its adapters, as it is at present: its version and its cache key."""

from __future__ import annotations

from collections.abc import Hashable

from proactor.engine.model import Decoder
from proactor.engine.owner import RELEASED
from proactor.engine.types import EngineError


class Weights:
    """The base with one adapter, or bare: what a request or a tree is computed with.

    ``version``: updates of the adapter so far. ``epoch``: how often KV computed with it was dropped.
    """

    def __init__(self, name: str, decoder: Decoder, version: int = 0) -> None:
        self.name, self.version, self.epoch = name, version, 0
        self._decoder: Decoder | None = decoder

    @property
    def decoder(self) -> Decoder:
        """The model with the adapter. Raises EngineError after `release`."""
        if self._decoder is None:
            raise EngineError(RELEASED)
        return self._decoder

    @property
    def namespace(self) -> Hashable:
        """Cache key of KV computed with the present weights."""
        if self.decoder.lora is None:
            return "base", self.decoder.dtype
        return "adapter", self.name, self.epoch, self.decoder.dtype

    def release(self) -> None:
        """Let go of the model and the adapter."""
        self._decoder = None
