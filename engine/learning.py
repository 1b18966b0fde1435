"""`Learning`: what an engine does with its adapters besides sampling: training, scoring, saving."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from proactor.engine import training
from proactor.engine.adapter_io import load_adapter, save_adapter
from proactor.engine.arguments import instance, listed, path_of, short
from proactor.engine.checks import check_groups
from proactor.engine.config import GRPO, SFT, AdamW
from proactor.engine.early_gradient import EarlyGradient
from proactor.engine.group_plan import GroupPlan, group_planner
from proactor.engine.logprobs import mean_nll, sequence_choices, sequence_logprobs
from proactor.engine.loss import Loss
from proactor.engine.parts import Parts
from proactor.engine.state import check_counts, load_state, save_state
from proactor.engine.trainer import Trainer
from proactor.engine.training_state import check_training, training_state
from proactor.engine.tree import Tree
from proactor.engine.types import EngineError, Group, Sample
from proactor.engine.weights import Weights


class Learning(Parts):
    """The trained half of `Engine`.

    ``adapter`` names one of `adapters`; None is the first. Each has weights, gradient, moments and version of
    its own: a call on one leaves the others as they are. Raises EngineError, with the names, for another.
    """

    # -- training ---

    def train(
        self, data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT, adapter: str | None = None
    ) -> dict[str, float]:
        """Train on groups with GRPO (from rewards, or from advantages where a sample has one), or with SFT.

        SFT takes samples or groups, with masks. Each rank passes its own part, and may pass none. Groups
        without a trained token are left out and counted (``masked_groups``). A minibatch whose gradient is 0
        everywhere, for example because no group has spread, makes no step: the adapter, the moments and the
        schedule stay (``zero_gradient`` counts them).

        Returns statistics over all ranks and steps (`update.means`); ``loss`` has the gradient's divisor, and
        ``grad_norm``, ``lr``, ``step`` and ``normalizer`` are those of the last step. The adapter's version
        has then advanced by the steps and the next sample uses the new weights; samples in flight are
        finished before, under the old ones, or go on under the new ones (`EngineConfig.max_staleness`). Ranks
        meet where their gradients are summed. Raises EngineError, on every rank, for rewards and advantages
        that are missing, NaN or infinite, for greedy samples, and for those that another adapter drew;
        NothingToTrain where no rank has data.
        """
        trainer, weights = self._learner(adapter)
        train = partial(training.train, trainer, self._policy, weights, data, config)
        return self._loop.change(train, update=True)

    def early_gradient(self, config: GRPO, adapter: str | None = None) -> EarlyGradient | None:
        """For a rank that has groups to train on while others still sample; its `EarlyGradient.train` takes
        the place of `train`. None on a single rank, and where ``config`` needs the groups of all ranks first
        (`EarlyGradient.possible`).
        """
        trainer, weights = self._learner(adapter)
        if self.world_size == 1 or not EarlyGradient.possible(config):
            return None
        return EarlyGradient(trainer, self._policy, weights, self._loop, config)

    def plan(
        self,
        groups: Sequence[Group],
        config: GRPO | SFT | Loss | None = None,
        adapter: str | None = None,
    ) -> GroupPlan:
        """What `train` (or `forward_backward`, with a loss) would compute for ``groups``, from their tokens.

        Tokens and chunks are those of the step itself; its peak of memory and its shares of the time are
        computed from shapes. Groups need no rewards. Raises EngineError as `train` does for tokens that
        cannot be trained.
        """
        groups = listed(groups, (Group,), "plan")
        mine = self._trainer(adapter)
        beside = [trainer.lora.lora for trainer in self._trainers.values() if trainer is not mine]
        planner = group_planner(self.decoder, mine.lora.lora, beside, self._policy.budgets)
        return planner.plan(groups, config)

    def forward_backward(
        self, trees: Sequence[Tree] | Sequence[Group], loss: Loss, adapter: str | None = None
    ) -> dict[str, float]:
        """Add the gradient of ``loss`` over trees (or groups) to the adapter's; returns this rank's sums.

        Follow with `step`, or with `reduce_gradients` and an optimizer of your own. Any number of calls, on
        any number of ranks, adds up to one gradient. Groups without a trained token are left out. After a
        call that raised, the gradient is incomplete and `step` raises EngineError until `zero_grad`. Raises
        EngineError for a loss that returns no scalar tensor with a gradient (`loss.evaluate`).
        """
        trainer, weights = self._learner(adapter)
        units: Sequence[Group | Tree] = listed(trees, (Group, Tree), "forward_backward")
        if not callable(loss):
            raise EngineError(f"forward_backward: loss should be a function, not {short(loss)}")
        groups = [g for unit in units for g in (unit.groups if isinstance(unit, Tree) else [unit])]
        check_groups(groups, weights.version, weights.name)
        self._policy.refuse_long(groups, gradient=True)
        add = partial(trainer.forward_backward, groups, loss, version=weights.version)
        tally = self._owner.call(add)
        return {**tally.sums, **tally.maxima}

    def reduce_gradients(self, adapter: str | None = None) -> float:
        """Sum ``.grad`` of `parameters` over ranks and divide by the normaliser, which is returned.

        For a caller's own optimizer; `step` does it itself.
        """
        return self._owner.call(self._trainer(adapter).reduce)

    def step(self, config: AdamW | None = None, adapter: str | None = None) -> dict[str, float]:
        """Reduce, clip and apply one AdamW step.

        A gradient that is not finite, or 0 everywhere, is dropped: nothing changes, no new version. Samples
        in flight: as `train`.
        """
        config = AdamW() if config is None else instance(config, AdamW, "step: config")
        trainer, weights = self._learner(adapter)
        step = partial(training.step, trainer, self._policy, weights, config)
        return self._loop.change(step, update=True)

    def weights_changed(self, adapter: str | None = None) -> None:
        """Declare that an adapter was changed; its cached KV is dropped. For a caller's own optimizer.

        Change it only while nothing is sampled: samples in flight mix both weights.
        """
        self._loop.change(partial(self._policy.advance, self._learner(adapter)[1]))

    def zero_grad(self, adapter: str | None = None) -> None:
        """Forget accumulated gradients."""
        self._owner.call(self._trainer(adapter).zero_grad)

    def parameters(self, adapter: str | None = None) -> list[Tensor]:
        """An adapter's leaves (float32 views of one flat buffer), for a caller's own optimizer."""
        return self._trainer(adapter).lora.leaves

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Sequence[tuple[int, int]] | None = None,
        adapter: bool | str = True,
        trees: Sequence[Hashable] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities (temperature 1) of ids[start:end] of each sequence, float32 on the CPU.

        ``spans`` are (start, end) with start >= 1; without them, everything from the second id on.
        ``adapter``: as `Sampling.adapter`. ``trees``: one key a sequence (`Group.tree`); sequences
        of one key compute their common beginning once, in deterministic mode too. Raises EngineError naming
        the sequence whose ids, length or span cannot be.
        """
        weights = self._weights(adapter)
        return self._owner.call(partial(sequence_logprobs, self._policy, weights, sequences, spans, trees))

    def greedy(self, sequences: Sequence[Sequence[int]], adapter: bool | str = True) -> list[Tensor]:
        """What greedy sampling would write in place of each id of ``sequences`` from the second on, given the
        ids before it: int64 on the CPU. ``adapter`` and errors as `logprobs`.
        """
        return self._owner.call(partial(sequence_choices, self._policy, self._weights(adapter), sequences))

    def nll(self, groups: Sequence[Group], adapter: bool | str | None = None) -> float:
        """Mean negative log-likelihood (nats) of the groups' trained tokens, over all ranks; 0 where there is
        none. No update.
        """
        groups = listed(groups, (Group,), "nll")
        weights = self._weights(adapter)
        return self._owner.call(partial(mean_nll, self._policy, weights, self.parallel, groups))

    # -- saving ---

    def save_adapter(self, folder: str | Path, adapter: str | None = None) -> None:
        """Write an adapter as a PEFT folder, atomically. Raises CheckpointError when that fails."""
        lora = self._trainer(adapter).lora
        folder = path_of(folder, "save_adapter", "a folder")
        self._owner.call(partial(save_adapter, folder, lora, self.base_name or None))

    def load_adapter(self, folder: str | Path, adapter: str | None = None) -> None:
        """Read a PEFT folder into an adapter, and start its optimizer anew.

        Moments, step count (so the schedule) and accumulated gradient belong to the adapter before it; `save`
        and `resume` keep them. Samples in flight are finished before. Raises EngineError naming what does not
        fit (rank, scale, targets, shapes).
        """
        trainer, weights = self._learner(adapter)
        folder = path_of(folder, "load_adapter", "a folder")

        def load() -> None:
            self._policy.refuse_in_flight("load_adapter")
            load_adapter(folder, trainer.lora)
            trainer.reset()
            self._policy.advance(weights)

        self._loop.change(load)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes: tensors (adapter, both moments) and counters; and ``lora``, the
        adapter's rank, scale and targets. Of several adapters all have a part (`training_state`).
        """
        return {
            **self._owner.call(partial(training_state, self._learners())),
            "samplings": self.samplings,
            "seed": self.seed,
        }

    def _learners(self) -> dict[str, tuple[Trainer, Weights]]:
        self._learner()  # raises where nothing is trained
        return {name: self._learner(name) for name in self.adapters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`. Samples in flight are finished before.

        Raises EngineError, with nothing changed, for what `check_training` refuses (an adapter of another
        name, rank, scale, targets or size; what is missing or not finite).
        """
        self._load_state(instance(state, Mapping, "load_state_dict: state"))

    def _load_state(self, state: Mapping[str, Any], where: str = "state") -> None:
        learners = self._learners()

        def load() -> None:
            self._policy.refuse_in_flight("load_state_dict")
            parts = check_training(state, learners, where)
            check_counts(state, ("samplings",), where=where)
            if isinstance(state.get("seed"), bool) or not isinstance(state.get("seed"), int):
                raise EngineError(f"{where}: seed should be an integer, not {state.get('seed')!r}")
            for name, (trainer, weights) in learners.items():
                trainer.load_state(parts[name], where)
                self._policy.restore(weights, parts[name]["policy_version"])
            self.samplings, self.seed = state["samplings"], state["seed"]

        self._loop.change(load)

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the state and the caller's JSON-able ``record`` to one file, atomically.

        Rank 0 writes and the others wait. Raises EngineError, on every rank, when it cannot be written, also
        for a record that JSON cannot hold.
        """
        path = path_of(path, "save", "a file")
        record = {} if record is None else instance(record, Mapping, "save: record")
        state = self.state_dict()
        with self.parallel.together("save"):
            if self.rank == 0:
                save_state(path, state, dict(record))

    def resume(self, path: str | Path, say: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Restore the state of a `save` to the bit; returns its ``record``.

        ``say`` gets a line for a save of an older version, which has no checksum. Raises EngineError, naming
        the file and with nothing changed, for one that is missing or damaged, and like `load_state_dict`.
        """
        path = path_of(path, "resume", "a file")
        state, record = load_state(path, say)
        self._load_state(state, where=str(path))
        return record
