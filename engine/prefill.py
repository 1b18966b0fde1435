"""Prompts are computed in chunks: which of their rows run in a step, beside the sequences that decode."""

from __future__ import annotations

from collections.abc import Iterator

from proactor.engine.admission import Admission
from proactor.engine.controller import Decision
from proactor.engine.kv import Copy
from proactor.engine.running import AdmittedRequest, Running
from proactor.engine.step import Chunk, Step


class Prefill:
    """Plans the chunks of a step, and marks them as computed when it has run."""

    def __init__(self, running: Running, admission: Admission) -> None:
        self.running, self.admission = running, admission
        self._planned: list[AdmittedRequest] = []  # the runs of the step's chunks

    def plan(self, decision: Decision, max_rows: int, chunk: int, copies: list[Copy]) -> list[Chunk]:
        """Spend the rows of prompts: go on with prompts begun, then admit from the line. No step is empty.

        ``max_rows``: rows of the step, those that decode included; ``chunk``: most rows of one prompt. The
        copies of prompts that are admitted are added to ``copies``.
        """
        self._planned = []
        chunks: list[Chunk] = []
        decoding = len(self.running.decoding)
        budget = min(decision.prefill_rows, max_rows - decoding)
        if not decoding and budget < 1:
            budget = min(chunk, max_rows)
        for run in self.running.prefilling:
            budget -= self._take(run, min(chunk, budget), chunks)
        if budget > 0:
            for run in self.admission.admit(decision.max_seqs, decision.room, copies):
                budget -= self._take(run, min(chunk, budget), chunks)
                if budget <= 0:
                    break
        return chunks

    def _take(self, run: AdmittedRequest, most: int, chunks: list[Chunk]) -> int:
        """Plan the next rows of a prompt, at most so many; returns how many."""
        assert run.seq is not None
        start, prompt = run.seq.computed, run.request.prompt_ids
        end = min(start + most, len(prompt))
        if end > start:
            ids, last = prompt[start:end], end == len(prompt)
            chunks.append(Chunk(run.request, run.seq.block_table, start, ids, last))
            self._planned.append(run)
        return end - start

    def commit(self, step: Step) -> Iterator[AdmittedRequest]:
        """Mark a step's chunks as computed, one by one; yields each run whose prompt is complete then."""
        for chunk, run in zip(step.prefills, self._planned, strict=True):
            assert run.seq is not None
            self.running.pool.advance(run.seq, len(chunk.ids))
            if chunk.last:
                yield run

    def reset(self) -> None:
        """Forget what was planned."""
        self._planned = []
