"""`TurnSampler`: draws the turns of one episode, each after exactly what the agent reads then.

Usually that is all that was said and shown so far, and a turn costs its own tokens and the observation before
it (`Session.advance`). A method that edits the history (`proactor.methods.agent_omit`) reads something else:
from its first edited token on, that is computed anew, and what follows goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from proactor.engine import Sample, Sampling

if TYPE_CHECKING:
    from proactor.engine import Session  # imports torch

KEYS = 2**16
"""Keys of episodes lie below; a history that was edited for the n-th time has the noise of key + n `KEYS`."""


class TurnSampler:
    """``log``: the prompt, and in order all that was drawn, given and shown, edits left aside. Tokens that
    were not drawn are not trained.

    ``key``, ``index``: as in `Session.sample`; key and index name all of the episode's noise.
    """

    def __init__(
        self, session: Session, prompt: Sequence[int], temperature: float, key: int | None, index: int
    ) -> None:
        self.log = Sample(list(prompt), [], mask=[], temperature=temperature)
        self._session, self._key, self._index = session, key, index
        self._live: Sample | None = None
        self._begun = 0

    def show(self, ids: Sequence[int]) -> None:
        """Observation ids, or a turn that somebody else said."""
        self.log.extend(ids)

    async def draw(self, ids: Sequence[int], sampling: Sampling) -> None:
        """Draw the turn that follows ``ids`` and append it to the log."""
        live, ids = self._live, list(ids)
        known = live.prompt_ids + live.token_ids if live is not None else []
        if live is not None and ids[: len(known)] == known:
            start = len(ids) - len(live.prompt_ids)
            await self._session.advance(live, ids[len(known) :], sampling)
        else:
            start, key = 0, self._key
            if key is None and sampling.seed is not None:
                key = 0  # as the session would name it, to be told apart below
            if key is not None:
                key += self._begun * KEYS
            live = await self._session.sample(ids, sampling, key=key, index=self._index)
            self._live, self._begun = live, self._begun + 1
        self._append(live, start)

    def _append(self, live: Sample, start: int) -> None:
        """Append what ``live`` holds from token ``start`` on."""
        log = self.log
        if not any(log.mask or ()):
            log.policy_version = live.policy_version
        versions = live.token_versions()[start:]
        log.append(
            replace(
                live,
                prompt_ids=log.prompt_ids + log.token_ids,
                token_ids=live.token_ids[start:],
                logprobs=live.logprobs[start:],
                policy_logprobs=live.policy_logprobs[start:],
                policy_version=min(versions, default=live.policy_version),
                versions=versions if len(set(versions)) > 1 else None,
                mask=None,
            )
        )
        log.noise = live.noise
