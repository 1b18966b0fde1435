"""A model in the engine as annotator.

The whole dialogue is the trunk and each turn's question a leaf, so that the prefix cache computes the
dialogue once for all its turns; the engine's counters show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from proactor.annotation.marks import answer_schema
from proactor.annotation.oracle import OracleAnswer, OracleRequest
from proactor.annotation.prompt import messages, parts
from proactor.dialogue.decisions import noise_key
from proactor.engine import Constraint, Engine, EngineError, Sampling, read_lora
from proactor.files import folder_hash
from proactor.progress import Progress


class EngineOracle:
    """Samples the answers from an engine.

    ``brief``: the prompt without instructions, for a model trained on it. ``temperature``: sampling
    temperature of the first reading (0: greedy). ``second``: that of a second reading, above 0 so that it can
    differ. ``constrained``: answers keep to `answer_schema` (`Constraint`; the extra ``constrain``), for a
    model that was not trained on another form. ``adapter``: use the engine's adapter, if any; `identity`
    includes the hash of its folder, so that an annotation is never resumed with another adapter.

    Raises EngineError where the model folder holds no tokenizer.
    """

    steady = False
    workers = 1

    def __init__(
        self,
        engine: Engine,
        *,
        brief: bool = False,
        temperature: float = 0.0,
        second: float = 0.7,
        max_tokens: int = 256,
        batch: int = 16,
        adapter: bool | Path = True,
        constrained: bool = False,
    ) -> None:
        if engine.chat is None:
            raise EngineError(f"{engine.base_name}: the folder holds no tokenizer, so nothing can be asked")
        self.engine, self.chat, self.brief, self.batch = engine, engine.chat, brief, batch
        self.temperature, self.second = temperature, second
        self.max_tokens, self.adapter, self.constrained = max_tokens, bool(adapter), constrained
        adapter_name = folder_hash(adapter) if isinstance(adapter, Path) else adapter
        self.identity = (
            f"engine {engine.base_name} brief={brief} temperature={temperature:g}/{second:g} "
            f"max_tokens={max_tokens} adapter={adapter_name}" + " constrained" * constrained
        )
        self.prompt_tokens = 0
        report = engine.chat.report
        self.shared = report.appendable and not report.alternating and "system" in report.roles
        self._trunk: tuple[tuple[str, str], list[int]] = ("", ""), []

    def prompt(self, request: OracleRequest) -> list[int]:
        """Token ids of a request.

        Each message is encoded by itself where the chat template allows it, so that trunks have equal ids.
        """
        if not self.shared:
            whole = messages(request, self.brief)
            if "system" not in self.chat.report.roles:
                whole = [{"role": "user", "content": "\n\n".join(m["content"] for m in whole)}]
            return self.chat.encode(whole, add_generation_prompt=True)
        system, dialogue, question = parts(request, self.brief)
        if self._trunk[0] != (system, dialogue):
            ids = self.chat.encode_message({"role": "system", "content": system}, first=True)
            more = self.chat.encode_message({"role": "user", "content": dialogue})
            self._trunk = (system, dialogue), [*ids, *more]
        leaf = self.chat.encode_message({"role": "user", "content": question})
        return [*self._trunk[1], *leaf, *self.chat.generation_prompt_ids]

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        """One answer per request, in one batch; "too_long" where a request does not fit the context."""
        prompts = [self.prompt(request) for request in requests]
        fit = [i for i, ids in enumerate(prompts) if len(ids) < self.engine.context_length]
        settings = [
            Sampling(
                temperature=self.second if requests[i].repeat else self.temperature,
                max_tokens=self.max_tokens,
                seed=requests[i].repeat,
                constraint=self._form(requests[i]),
            )
            for i in fit
        ]
        settings = [s if self.adapter else s.model_copy(update={"adapter": False}) for s in settings]
        answers = [OracleAnswer(failure="too_long")] * len(requests)
        if fit:
            keys = [noise_key(requests[i].dialogue, requests[i].turn) for i in fit]
            for i, group in zip(
                fit, self.engine.sample([prompts[i] for i in fit], settings, keys), strict=True
            ):
                answers[i] = OracleAnswer(group.samples[0].text)
                self.prompt_tokens += len(prompts[i])
        return answers

    def _form(self, request: OracleRequest) -> Constraint | None:
        """What an answer must be; None for any text."""
        return Constraint(json_schema=answer_schema(request.tools)) if self.constrained else None

    def tokens(self, text: str) -> int:
        """Tokens of ``text``."""
        return len(self.chat.encode_continuation(text))

    def cost(self) -> Mapping[str, int]:
        """The engine's counters, and ``prompt_tokens``: the sum over all requests, as without a cache."""
        counters = self.engine.counters()
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens_computed": counters.get("tokens_computed", 0),
            "tokens_avoided": counters.get("tokens_avoided", 0),
            "tokens_sampled": counters.get("tokens_sampled", 0),
        }

    async def close(self) -> None:
        """The engine belongs to the caller."""


def load_engine(folder: str, adapter: Path | None, ui: Progress) -> Engine:
    """Load a model folder, and a PEFT adapter where one is named. Raises EngineError where it cannot."""
    lora = None if adapter is None else read_lora(adapter)
    engine = Engine.load(
        folder, lora=lora, progress=lambda done, total: ui.substep("loading the model", done, total)
    )
    if adapter is not None:
        engine.load_adapter(adapter)
    return engine
