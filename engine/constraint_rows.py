"""The masks of the rows of a step that have a constraint, filled on the host and spread on the device.

They need the tokens drawn before, and nothing of the model's forward. So the sampler fills them after it has
launched the forward: on a GPU they cost no time of their own as long as they take less than the device does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proactor.engine.grammars import WORD, Matcher


class ConstraintRows:
    """The masks of texts, for as long as the same samples draw.

    ``rows``: of the step; ``texts``: for each its matcher, and the list that its drawn ids are appended to.
    ``named``: bool [V], False for ids that are never drawn; None: all may be.
    """

    def __init__(
        self,
        rows: Sequence[int],
        texts: Sequence[tuple[Matcher, Sequence[int]]],
        named: Tensor | None,
        device: torch.device,
    ) -> None:
        self.rows, self.texts, self.device = list(rows), list(texts), device
        self._named = None if named is None else _packed(named)
        matchers = [matcher for matcher, _ in texts]
        self._places = [(matcher.core, i) for i, matcher in enumerate(matchers)]
        self._special = [i for i, matcher in enumerate(matchers) if matcher.more or matcher.less]
        self._bits = torch.empty((0, 0), dtype=torch.int32)

    def fill(self, width: int) -> dict[int, str]:
        """Compute what each text may go on with, of ``width`` ids.

        Returns the rows whose text can go on with nothing, and why: they allow everything instead, and their
        requests are to be ended.
        """
        for matcher, ids in self.texts:
            matcher.follow(ids)
        words = -(-width // WORD)
        if self._bits.shape[1] != words:
            pinned = self.device.type == "cuda"
            self._bits = torch.empty((len(self.rows), words), dtype=torch.int32, pin_memory=pinned)
        host = self._bits.numpy().view(np.uint32)
        _executor(torch.get_num_threads()).unsafe_compute_mask_ptr(
            self._places, host.ctypes.data, 4 * words, len(self.rows)
        )
        for i in self._special:
            self.texts[i][0].place_ends(host[i])
        if self._named is not None:
            host &= self._named
        failed = {}
        for i, (matcher, ids) in enumerate(self.texts):
            if host[i].any() and not matcher.core.is_error():
                continue
            failed[self.rows[i]] = f"{matcher.fault() or 'no token goes on'} at position {len(ids)}"
            host[i] = ~np.uint32(0) if self._named is None else self._named
        return failed

    def spread(self, width: int) -> Tensor:
        """The masks as bool [C, ``width``] on the device."""
        if self.device.type == "cpu":
            octets = self._bits.numpy().view(np.uint8)
            return torch.from_numpy(np.unpackbits(octets, axis=1, count=width, bitorder="little").view(bool))
        # read before the step ends, which waits for the device: the next one may write
        return spread_bits(self._bits.to(self.device, non_blocking=True), width)


def spread_bits(bits: Tensor, width: int) -> Tensor:
    """Bool [C, ``width``] of words int32 [C, W], lowest bit first, where they are."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return ((bits.unsqueeze(-1) >> shifts) & 1).view(len(bits), -1)[:, :width].bool()


def _packed(named: Tensor) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Bool [V] as the words of a mask."""
    flags = named.cpu().numpy()
    flags = np.pad(flags, (0, -len(flags) % WORD))
    return np.packbits(flags, bitorder="little").view(np.uint32)


@cache
def _executor(threads: int) -> Any:
    from llguidance import LLExecutor

    return LLExecutor(threads)
