"""Proactive Agent (ProactiveBench): the accept-reject reward model, and the metrics of judged proposals.

A reward model judges a proposed task, or a silence (null), at an event: its log-odds are those of the
answers "accepted" and "rejected" to `event_streams.question`. It learns them from people's judgements, rare
categories oversampled up to a fifth of the largest, and then is the user of the gym ``events``:

    user: {kind: accept_reject, adapter: FOLDER}

Confirmed by ProactiveAgent's code: null is judged as well, the balancing, what TP, FP, TN and FN are, and
every metric, false alarm being 1 - precision. Ours: the prompt, that the model answers by one word at once
(upstream it writes a thought first, for which a larger model made up the rationales), and every number of the
training.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from proactor.dialogue.event_streams import FILES, Judged, fifth, read_judged, stream_name
from proactor.engine import SFT, Group, LoRA, ProactorError, Sample, atomic_folder, has_adapter, read_lora
from proactor.environments.errors import GymError
from proactor.environments.gyms.event_streams import Verdict, question, verdict
from proactor.environments.users import UserModel
from proactor.files import SourceError, find_files, settings_problem

if TYPE_CHECKING:
    from proactor.engine import Engine  # imports torch

EPSILON = 1e-8
"""Upstream's, in every quotient."""
FLOOR = 5
"""A category is oversampled up to the largest one's count divided by this."""
ANSWERS = ("rejected", "accepted")


# --- metrics ---


@dataclass(frozen=True, slots=True)
class Counts:
    """Verdicts at some events."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0

    @classmethod
    def of(cls, verdicts: Iterable[Verdict]) -> Counts:
        """The numbers of each verdict."""
        found = Counter(verdicts)
        return cls(found["TP"], found["FP"], found["TN"], found["FN"])

    @property
    def metrics(self) -> dict[str, float]:
        """Recall, precision, accuracy, false alarm (FP / (TP + FP)) and F1, as upstream computes them."""
        recall, precision = _share(self.tp, self.fn), _share(self.tp, self.fp)
        return {
            "recall": recall,
            "precision": precision,
            "accuracy": _share(self.tp + self.tn, self.fp + self.fn),
            "false_alarm": _share(self.fp, self.tp),
            "f1": 2 * precision * recall / (precision + recall + EPSILON),
        }


def _share(part: int, rest: int) -> float:
    return part / (part + rest + EPSILON)


def agent_counts(judged: Iterable[tuple[str | None, bool | None]]) -> tuple[Counts, int]:
    """(verdicts on an agent's proposals or silences, how many had no verdict and are left out)."""
    seen = list(judged)
    known = [verdict(None if task == "null" else task, said) for task, said in seen if said is not None]
    return Counts.of(known), len(seen) - len(known)


def judge_counts(valid: Iterable[bool], predicted: Iterable[bool | None]) -> Counts:
    """Of a judge: positive is a line that people accepted. No prediction counts as rejected."""
    pairs = Counter((right, said is True) for right, said in zip(valid, predicted, strict=True))
    return Counts(pairs[True, True], pairs[False, True], pairs[False, False], pairs[True, False])


# --- data ---


def read_labelled(path: Path) -> tuple[list[Judged], list[Judged], Counter[str]]:
    """(lines to learn from, lines of the held-out fifth of the streams, counters) of a folder or file.

    ``unlabelled``: lines without a judgement, left out. Raises SourceError where one part has no line.
    """
    lines = [line for file in find_files(path, *FILES) for line in read_judged(file, Judged)]
    labelled = [line for line in lines if line.valid is not None]
    counts = Counter({"unlabelled": len(lines) - len(labelled)})
    held = fifth(stream_name(line.events) for line in lines)
    parts: tuple[list[Judged], list[Judged]] = ([], [])
    for line in labelled:
        parts[stream_name(line.events) in held].append(line)
    if not all(parts):
        streams = len({_stream(line) for line in labelled})
        raise SourceError(
            f"{path}: {len(labelled)} judged lines of {streams} streams: two streams with judgements are the "
            "least, one of them of the held-out fifth"
        )
    return *parts, counts


def balanced(lines: Sequence[Judged], seed: int = 0) -> list[Judged]:
    """The lines, then more of each rare category (`Judged.kind`), drawn with replacement, up to a fifth of
    the largest one's count.
    """
    by_kind: dict[str, list[Judged]] = {}
    for line in lines:
        by_kind.setdefault(line.kind, []).append(line)
    least = max(map(len, by_kind.values()), default=0) // FLOOR
    drawn, out = random.Random(f"balanced/{seed}"), list(lines)
    for _, of_kind in sorted(by_kind.items()):
        out += drawn.choices(of_kind, k=max(0, least - len(of_kind)))
    return out


def _stream(line: Judged) -> str:
    return stream_name(line.events)


# --- the reward model ---


class JudgeTraining(SFT):
    """How a reward model learns: ``steps`` updates on ``batch_lines`` of the balanced lines each, which go
    round in an order drawn by ``seed``; ``together``: so many lines of one stream follow each other there,
    and its events are computed once for them; ``limit``: the first so many lines of that order (None: all).
    """

    lr: float = Field(default=2e-4, gt=0)
    steps: int = Field(default=60, ge=1)
    batch_lines: int = Field(default=32, ge=1)
    together: int = Field(default=1, ge=1)
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0


def training_order(lines: Sequence[Judged], config: JudgeTraining) -> list[Judged]:
    """The balanced lines in the order of their training."""
    of_stream: dict[str, list[tuple[bytes, Judged]]] = {}
    for place, line in enumerate(balanced(lines, config.seed)):
        of_stream.setdefault(_stream(line), []).append((_hash(config.seed, place), line))
    packs = []
    for found in of_stream.values():
        found.sort(key=lambda one: hashlib.blake2b(b"pack" + one[0]).digest())
        packs += [found[first : first + config.together] for first in range(0, len(found), config.together)]
    packs.sort(key=lambda pack: pack[0][0])
    return [line for pack in packs for _, line in pack][: config.limit]


class RewardModel:
    """Judges with an engine and its adapter. ``counters``: ``questions``, ``tokens_trained``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.counters: Counter[str] = Counter()
        self._answers = [
            engine.tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in ANSWERS
        ]

    def learn(self, lines: Sequence[Judged], config: JudgeTraining) -> list[float]:
        """Train the adapter; the loss of each update. Lines of one stream share a tree: their events are
        computed once a batch. Raises ProactorError where all lines have one judgement.
        """
        if len({line.valid for line in lines}) < 2:
            raise ProactorError(
                "accept-reject model: all lines have the same judgement, nothing to tell apart"
            )
        wanted, losses = training_order(lines, config), []
        for step in range(config.steps):
            first = step * config.batch_lines
            chosen = [wanted[(first + i) % len(wanted)] for i in range(min(config.batch_lines, len(wanted)))]
            groups = []
            for line in chosen:
                prompt = self._prompt(question(line.events, line.pred_task))
                taken = Sample(prompt, list(self._answers[line.valid is True]))
                groups.append(Group(prompt, [taken], tree=_stream(line)))
            stats = self.engine.train(groups, config)
            losses.append(stats["loss"])
            self.counters["tokens_trained"] += int(stats["tokens_trained"])
        return losses

    def log_odds(self, questions: Sequence[str], streams: Sequence[str] | None = None) -> list[float]:
        """log P(accepted) - log P(rejected) of each question, in nats; ``streams``: one key a question, those
        of one key computed together.
        """
        sequences, spans, trees = [], [], []
        for number, asked in enumerate(questions):
            prompt = self._prompt(asked)
            for answer in self._answers:
                sequences.append(prompt + answer)
                spans.append((len(prompt), len(prompt) + len(answer)))
                trees.append(number if streams is None else streams[number])
        values = [float(v.double().sum()) for v in self.engine.logprobs(sequences, spans, trees=trees)]
        self.counters["questions"] += len(questions)
        return [yes - no for no, yes in zip(values[::2], values[1::2], strict=True)]

    def odds(self, lines: Sequence[Judged]) -> list[float]:
        """`log_odds` of each line's proposal."""
        return self.log_odds([question(x.events, x.pred_task) for x in lines], [_stream(x) for x in lines])

    def judge(self, lines: Sequence[Judged]) -> list[bool]:
        """Whether it accepts each line's proposal."""
        return [value > 0 for value in self.odds(lines)]

    def _prompt(self, asked: str) -> list[int]:
        return self.engine.encode([{"role": "user", "content": asked}])


def _hash(seed: int, place: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{place}".encode()).digest()


class AcceptReject(UserModel):
    """A reward model as the user of a run: kind ``accept_reject``.

    ``model``: folder or hub id (of a run: by default the agent's); ``adapter``: folder of its adapter. Where
    that does not exist it is trained first, from the judged lines at ``data`` (of a run: by default the gym's
    path), with ``train`` (`JudgeTraining`) and ``lora``. It has an engine of its own, with the options
    ``engine``. Equal questions are judged once.
    """

    def __init__(
        self,
        model: str,
        adapter: str,
        data: str | None = None,
        train: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.adapter, self.data = model, Path(adapter), data
        self.options = dict(engine or {})
        try:
            self.training = JudgeTraining.model_validate(train or {})
            self.lora = LoRA.model_validate(lora or {"rank": 16, "alpha": 32})
        except ValidationError as error:
            _, problem = settings_problem(error, lambda _: "")
            raise GymError(f"user accept_reject: {problem}") from None
        self._judge: RewardModel | None = None
        self._known: dict[str, str] = {}
        self._requests = 0
        self._asking = threading.Lock()

    def check(self) -> None:
        """See `UserModel`."""
        super().check()
        if not has_adapter(self.adapter):
            if self.data is None:
                raise GymError(
                    f"user accept_reject: no adapter in {self.adapter}; name data, the judged lines to "
                    "train it on"
                )
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise GymError(
                    f"user accept_reject: no adapter in {self.adapter} yet: train it in one process first"
                )
            read_labelled(Path(self.data))  # fails before anything is loaded

    def bind(self, engine: Engine) -> None:
        """Load the reward model, training it where its adapter does not exist. ``engine`` is not used."""
        from proactor.engine import Engine

        there = has_adapter(self.adapter)
        lora = read_lora(self.adapter) if there else self.lora
        mine = Engine.load(self.model, lora=lora, seed=self.training.seed, **self.options)
        self._judge = RewardModel(mine)
        if there:
            mine.load_adapter(self.adapter)
            return
        assert self.data is not None, "checked"
        lines, _, _ = read_labelled(Path(self.data))
        self._judge.learn(lines, self.training)
        with atomic_folder(self.adapter) as whole:
            mine.save_adapter(whole)

    def _answer(self, question: str) -> str:
        if self._judge is None:
            raise GymError("user accept_reject: bind(engine) comes first")
        with self._asking:
            self._requests += 1
            if question not in self._known:
                [odds] = self._judge.log_odds([question])
                self._known[question] = ANSWERS[odds > 0]
            return self._known[question]

    def _counted(self) -> Mapping[str, int]:
        return {"requests": self._requests, "replies": self._requests}
