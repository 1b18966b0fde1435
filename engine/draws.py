"""The draws of a step: whose token each row of logits gives, and the settings as columns on the device.

Columns are made when a sequence joins or leaves, and kept between steps; positions advance in place. A step
that only decodes uploads nothing for them, and reads tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.engine.constraint_rows import ConstraintRows
from proactor.engine.grammars import Matcher
from proactor.engine.jobs import Job
from proactor.engine.row_adapters import row_adapters
from proactor.engine.step import SampleId
from proactor.engine.stops import StopSearch
from proactor.engine.types import Sample
from proactor.kernels.noise import keyed_uniforms
from proactor.kernels.op import use_triton
from proactor.kernels.sample import Filters

AHEAD: Final = 16
"""Draws of a sample whose noise a CPU computes at once: a call costs little more for many keys."""


@dataclass(slots=True, eq=False)
class Draw:
    """A sample that is being drawn. ``stops``: the search for its stop strings, ``matcher``: the state of its
    text in its constraint, None where it has none; ``ahead``: noise of its next draws, on a CPU, the next
    one last.
    """

    id: SampleId
    job: Job
    sample: Sample
    stops: StopSearch | None = None
    matcher: Matcher | None = None
    ahead: list[float] = field(default_factory=list)

    def noise_key(self) -> tuple[int, int, int, int, int]:
        """(seed, iteration, group key, sample, position), each an int64: what the next draw's noise is of."""
        assert self.sample.noise is not None
        seed, iteration, key, index = self.sample.noise
        if seed >= 1 << 63:  # the same 64 bits, signed
            seed -= 1 << 64
        return seed, iteration, key, index, self.job.offset + len(self.sample.token_ids)


class DrawColumns:
    """The settings of draws [B], for as long as the same samples draw.

    ``named``: bool [V] on the device, False for ids that are never drawn; None: all may be. ``adapters``:
    those of the draws. ``masked``: rows with a ``logit_mask``; ``constraints``: those with a
    constraint, None where none has.
    """

    def __init__(self, draws: list[Draw], named: Tensor | None, device: torch.device) -> None:
        self.draws, self.device = draws, device
        self.ids = [draw.id for draw in draws]
        settings = [draw.job.sampling for draw in draws]
        values = [[s.temperature, s.top_p, s.min_p] for s in settings]
        self.temperature, self._top_p, self._min_p = _columns(
            np.asarray(values, np.float32).reshape(-1, 3), device
        )
        self.masked = [i for i, s in enumerate(settings) if s.logit_mask is not None]
        texts = {i: (d.matcher, d.sample.token_ids) for i, d in enumerate(draws) if d.matcher is not None}
        self.constraints = ConstraintRows([*texts], [*texts.values()], named, device) if texts else None
        self.filtered = named is not None or any(s.filtered for s in settings)
        if self.filtered:
            self._top_k = torch.tensor([s.top_k for s in settings], device=device)
        self._named, self._allowed = named, torch.empty((0, 0), dtype=torch.bool)
        self._noise = noise_of(draws, device)
        self._no_noise = torch.zeros(len(draws), dtype=torch.float64, device=device)
        self._drawn = torch.empty((3, len(draws)), dtype=torch.float64, device=device)
        self._drawn_rows = self._drawn.unbind()
        self.adapters = row_adapters([(draw.job.lora, 1) for draw in draws], device)
        self._ends = [draw.job.end_ids for draw in draws]
        self._any_end: frozenset[int] = frozenset().union(*self._ends)
        self._stopping = [(i, draw, draw.stops) for i, draw in enumerate(draws) if draw.stops is not None]
        self._topped = [i for i, s in enumerate(settings) if s.top_logprobs]
        samples = [draw.sample for draw in draws]
        self._ids = [s.token_ids.append for s in samples]
        self._logprobs = [s.logprobs.append for s in samples]
        self._policy = [s.policy_logprobs.append for s in samples]

    def __len__(self) -> int:
        return len(self.draws)

    def uniforms(self) -> Tensor:
        """The noise of the next draw, float64 [B]; the positions move on. Zeros where all are greedy."""
        return self._no_noise if self._noise is None else self._noise.advance()

    def filters(self, width: int) -> Filters | None:
        """The filters over logits [B, ``width``]; None where no row has any. `allow` first."""
        if not self.filtered:
            return None
        masked = self._named is not None or self.masked or self.constraints is not None
        allowed = self._allowed_rows(width) if masked else None
        return Filters(self._top_k, self._top_p, self._min_p, allowed)

    def constrain(self, width: int) -> list[tuple[Draw, str]]:
        """Let the rows of `constraints` draw what their texts may go on with next, of ``width`` ids.

        Returns the draws that cannot go on, and why; they may draw everything, and are to be ended.
        """
        if self.constraints is None:
            return []
        failed = self.constraints.fill(width)
        self._allowed_rows(width)[self.constraints.rows] = self.constraints.spread(width)
        return [(self.draws[row], why) for row, why in failed.items()]

    def allow(self, row: int, mask: Tensor | None, width: int) -> None:
        """Let a row of ``masked`` draw what bool [``width``] allows next, or everything; after `constrain`,
        nothing that its constraint forbids.
        """
        allowed = self.allowed(row, width)
        if self.draws[row].matcher is None:
            allowed.fill_(True) if self._named is None else allowed.copy_(self._named)
        if mask is not None:
            allowed &= mask.to(self.device)

    def allowed(self, row: int, width: int) -> Tensor:
        """Bool [``width``]: what a row may draw."""
        return self._allowed_rows(width)[row]

    def _allowed_rows(self, width: int) -> Tensor:
        """Bool [B, V]: what each row may draw."""
        if self._allowed.shape[1] != width:
            self._allowed = torch.ones((len(self.draws), width), dtype=torch.bool, device=self.device)
            if self._named is not None:
                self._allowed &= self._named
        return self._allowed

    def take(self, columns: Sequence[Tensor]) -> tuple[list[int], list[float], list[float]]:
        """Ids, log-probabilities and policy's log-probabilities [B] on the host: the step's only wait."""
        # float64 holds all three exactly, so that one copy brings them
        for row, column in zip(self._drawn_rows, columns, strict=True):
            row.copy_(column)
        ids, logprobs, policy = self._drawn.tolist()
        return list(map(int, ids)), logprobs, policy

    def tops(self, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        """(log-probabilities in the full softmax at the temperature, ids) [T, k], the most probable first, of
        the T rows that ask for `Sampling.top_logprobs`, of logits [B, V]; None where none does.
        """
        if not self._topped:
            return None
        most = max(self.draws[i].job.sampling.top_logprobs for i in self._topped)
        temperature = self.temperature[self._topped]
        scaled = logits[self._topped].float() / torch.where(temperature > 0, temperature, 1.0).unsqueeze(1)
        found = torch.log_softmax(scaled, -1)
        if self._named is not None:
            found = found.masked_fill(~self._named, -torch.inf)
        values, ids = found.topk(min(most, found.shape[1]))
        return values, ids

    def record(
        self,
        tokens: list[int],
        logprobs: list[float],
        policy: list[float],
        tops: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Append what was drawn to the samples, their log-probabilities last: readers go by those."""
        if tops is not None:
            for i, values, near in zip(self._topped, tops[0].tolist(), tops[1].tolist(), strict=True):
                draw = self.draws[i]
                assert draw.sample.top_logprobs is not None
                # the drawn one as it was recorded: another sum may differ in the last bit
                pairs = [(t, policy[i] if t == tokens[i] else v) for t, v in zip(near, values, strict=True)]
                draw.sample.top_logprobs.append(
                    [pair for pair in pairs[: draw.job.sampling.top_logprobs] if pair[1] > -torch.inf]
                )
        for ids, token, first, logprob, second, other in zip(
            self._ids, tokens, self._logprobs, logprobs, self._policy, policy, strict=True
        ):
            ids(token)
            first(logprob)
            second(other)

    def ended(self, tokens: list[int]) -> set[SampleId]:
        """The samples whose token is one of their end ids."""
        if self._any_end.isdisjoint(tokens):
            return set()
        drawn = zip(self.ids, tokens, self._ends, strict=True)
        return {sample for sample, token, ends in drawn if token in ends}

    def stopping(self, tokens: list[int]) -> list[tuple[Draw, StopSearch, int]]:
        """The draws that have stop strings, their searches, and their tokens."""
        return [(draw, search, tokens[i]) for i, draw, search in self._stopping]


def noise_of(draws: Sequence[Draw], device: torch.device) -> KeyedNoise | NoiseAhead | None:
    """The keyed uniforms of draws; None where all are greedy."""
    if all(draw.job.sampling.temperature <= 0 for draw in draws):
        return None
    keys = torch.empty((0, 5), dtype=torch.int64, device=device)
    return KeyedNoise(draws, device) if use_triton(keys) else NoiseAhead(draws, device)


class KeyedNoise:
    """Keyed uniforms of the same draws, position after position: the keys stay on the device."""

    def __init__(self, draws: Sequence[Draw], device: torch.device) -> None:
        keys = np.asarray([draw.noise_key() for draw in draws], np.int64).reshape(-1, 5)
        self._keys = torch.from_numpy(keys).to(device)
        self._positions = self._keys[:, 4]

    def advance(self) -> Tensor:
        """Uniforms float64 [B] of the present positions, which move on by one."""
        drawn = keyed_uniforms(self._keys)
        self._positions += 1
        return drawn


class NoiseAhead:
    """The same on the host, several positions at once; what a draw has left goes with it to other columns."""

    def __init__(self, draws: Sequence[Draw], device: torch.device) -> None:
        self._draws, self._device = draws, device

    def advance(self) -> Tensor:
        """As `KeyedNoise.advance`."""
        if short := [draw for draw in self._draws if not draw.ahead]:
            keys = np.asarray([draw.noise_key() for draw in short], np.int64)[:, None].repeat(AHEAD, 1)
            keys[:, :, 4] += np.arange(AHEAD - 1, -1, -1)
            ahead = keyed_uniforms(torch.from_numpy(keys.reshape(-1, 5))).view(-1, AHEAD).tolist()
            for draw, values in zip(short, ahead, strict=True):
                draw.ahead = values
        drawn = [draw.ahead.pop() for draw in self._draws]
        return torch.tensor(drawn, dtype=torch.float64, device=self._device)


def _columns(values: NDArray[np.float32], device: torch.device) -> Sequence[Tensor]:
    """The columns of [B, C] as contiguous tensors [B], uploaded at once.

    Each begins at a multiple of 16 bytes, since Triton compiles a kernel anew for other addresses.
    """
    rows, count = values.shape
    padded = np.zeros((count, -(-rows // 4) * 4), np.float32)
    padded[:, :rows] = values.T
    return torch.from_numpy(padded).to(device)[:, :rows].unbind()
