"""`EarlyGradient`: a rank without work adds the gradient of its finished groups while others still sample.

Gradients are sums until `Trainer.reduce`, so a part may be added before. It is computed in the engine's
thread, once nothing is in flight on this rank, so that it may take the memory of the KV cache; what this rank
is given to sample after all (leases of a rank that fell silent) waits for its end. The caller goes on: it
answers the other ranks meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from proactor.engine.arguments import listed
from proactor.engine.config import GRPO
from proactor.engine.owner import Call
from proactor.engine.policy import Policy
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.trainer import Tally, Trainer
from proactor.engine.training import add_gradient, lay_out, needs_all_ranks, take_steps
from proactor.engine.types import EngineError, Group
from proactor.engine.weights import Weights


class EarlyGradient:
    """The gradient of one step, begun before all groups are there. Made by `Engine.early_gradient`."""

    def __init__(
        self, trainer: Trainer, policy: Policy, weights: Weights, loop: SamplingLoop, config: GRPO
    ) -> None:
        self._trainer, self._policy, self._loop, self._config = trainer, policy, loop, config
        self._weights = weights
        self._tally = Tally()
        self._added: dict[int, Group] = {}  # by id; they are kept, so that no other group gets theirs
        self._passes: list[Call[None]] = []
        self._version = weights.version

    @staticmethod
    def possible(config: GRPO) -> bool:
        """Whether groups can be trained on before the others are there: in a single step a step, of
        advantages within the group.
        """
        return config.epochs == 1 and not needs_all_ranks(config)

    def add(self, groups: Sequence[Group]) -> None:
        """Begin to add the gradient of those ``groups`` that were not added yet, and return.

        They have their rewards, or advantages, and groups of one `Group.tree` key come together. Raises what
        an earlier pass raised.
        """
        for one in self._passes:
            if one.outcome.done():
                one.wait()
        new = [group for group in listed(groups, (Group,), "early gradient") if id(group) not in self._added]
        if new:
            self._added.update((id(group), group) for group in new)
            self._passes.append(self._loop.begin(partial(self._pass, new)))

    def train(self, groups: Sequence[Group]) -> dict[str, float]:
        """`Engine.train` with this rank's groups, which hold all that were added. Every rank must call this.

        The same numbers as `Engine.train` gives; without deterministic mode as far as floating-point sums
        allow, where the groups were not added at once.
        """
        return self._loop.change(partial(self._train, groups), update=True)

    def _pass(self, groups: list[Group]) -> None:
        work = lay_out(self._trainer, self._policy, self._weights, groups, self._config)
        if not self._tally.sums:  # the first
            self._trainer.zero_grad()  # an earlier call that raised may have left gradients
        self._tally.add(work.sums)
        add_gradient(self._trainer, self._weights, work, work.batches[0], self._tally)

    def _train(self, groups: Sequence[Group]) -> dict[str, float]:
        trainer, policy, config = self._trainer, self._policy, self._config
        with trainer.parallel.together("train"):
            policy.refuse_in_flight("train")
            data = listed(groups, (Group,), "train: GRPO")
            for one in self._passes:
                one.wait()  # each has ended: it was before this one in the line
            if self._weights.version != self._version:
                raise EngineError("train: the weights have changed since groups were added early")
            if lost := len(self._added.keys() - {id(group) for group in data}):
                raise EngineError(f"train: {lost} groups that were added early are missing")
            rest = [group for group in data if id(group) not in self._added]
            work = lay_out(trainer, policy, self._weights, rest, config)
            if not self._passes:
                trainer.zero_grad()
            return take_steps(trainer, policy, self._weights, work, config, self._tally, given=bool(data))
