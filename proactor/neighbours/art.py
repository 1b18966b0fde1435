"""ART's trajectory groups (`openpipe-art` 0.5) as groups for `Engine.train`, and groups as ART's.

    art = ArtGroups(ToolChat(engine.chat), version=engine.policy_version)
    engine.train(art.read(trajectory_groups), GRPO())           # art.TrajectoryGroup, or its JSON

    for group in art.write(groups, prompts, choice=Choice.model_validate):
        art.TrajectoryGroup([art.Trajectory(**fields) for fields in group["trajectories"]])

ART is not imported: its objects are read by their attributes, or as the mappings that ``model_dump`` makes of
them. A turn is trained by the ids that were drawn, from the choice's log-probabilities (tokens named
``token_id:7``, as vLLM and `proactor serve` write them on ``return_tokens_as_token_ids``). The messages
between turns are encoded once, where they stand (`ToolChat`).

As in ART: choices without log-probabilities and messages of the assistant are context; what follows the last
trained choice is left out; rewards become advantages within the group. Not as in ART: a trajectory without a
trained choice is refused instead of skipped, and so are additional histories.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress, pairwise, takewhile
from typing import Any

from proactor.engine import EngineError, Group, ProactorError, Sample, ToolChat

Fields = dict[str, Any]
_TOKEN = "token_id:"
_BETWEEN = "between_turns"


class ArtError(ProactorError):
    """A trajectory that cannot be read or written; the line names group, trajectory and message."""


class ArtGroups:
    """Reads and writes the trajectory groups of one model's conversations.

    ``temperature`` at which the choices were drawn, which ART does not record. ``version``: the policy that
    drew trajectories which do not say so (`Engine.policy_version`).

    ``counters``: ``exceptions`` (rollouts that failed, which ART lists beside the trajectories),
    ``groups_without_trajectories`` (left out), ``choices_without_logprobs`` (context), and
    ``turns_reencoded``: trained turns before which a server that encodes all messages anew, as chat
    completions do, saw other ids than are trained here. Their log-probabilities are of that other context.
    """

    def __init__(self, chat: ToolChat, *, temperature: float = 1.0, version: int = 0) -> None:
        self.chat, self.temperature, self.version = chat, temperature, version
        self.counters: Counter[str] = Counter()

    def read(self, groups: Iterable[Any]) -> list[Group]:
        """ART's groups as ours, with their rewards; `Sample.info` keeps metrics, metadata and messages.

        Where the prompts of a group differ, what they have in common is the prompt and the rest context.
        Raises ArtError for what cannot be trained.
        """
        read = []
        for i, group in enumerate(groups):
            trajectories = list(_get(group, "trajectories", ()))
            self.counters["exceptions"] += len(_get(group, "exceptions", ()))
            if not trajectories:
                self.counters["groups_without_trajectories"] += 1
                continue
            samples = [self._sample(t, f"group {i}, trajectory {j}") for j, t in enumerate(trajectories)]
            columns = zip(*(sample.prompt_ids for sample in samples))
            shared = [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, columns)]
            if not shared:
                raise ArtError(f"group {i}: its prompts have no beginning in common")
            for sample in samples:
                _shorten_prompt(sample, len(shared))
            read.append(Group(shared, samples, index=i))
        return read

    def write(
        self,
        groups: Iterable[Group],
        prompts: Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[Mapping[str, Any]] = (),
        choice: Callable[[Fields], Any] = dict,
    ) -> list[Fields]:
        """Groups as the fields of ART's ``TrajectoryGroup``, each trajectory as those of a ``Trajectory``.

        ``prompts[group.index]``: the messages that the group was sampled from. ``choice`` makes a choice of
        its fields: ART tells choices from messages by the class, ``openai``'s ``Choice``. A sample of several
        turns must have the messages between them, as `read` leaves them, in ``info["between_turns"]``. Raises
        ArtError where those, or a reward, are missing.
        """
        return [
            {
                "trajectories": [
                    self._fields(sample, prompts[group.index], tools, choice, f"group {i}, sample {j}")
                    for j, sample in enumerate(group.samples)
                ]
            }
            for i, group in enumerate(groups)
        ]

    # -- reading ---

    def _sample(self, trajectory: Any, where: str) -> Sample:
        if _get(trajectory, "additional_histories", ()):
            raise ArtError(f"{where}: additional histories are not read: make each a trajectory of its own")
        tools = _get(trajectory, "tools", None) or ()
        version = _get(trajectory, "initial_policy_version", None)
        entries = [
            _entry(m, f"{where}, message {k}")
            for k, m in enumerate(_get(trajectory, "messages_and_choices", ()))
        ]
        trained = [k for k, entry in enumerate(entries) if _logprobs(entry)]
        if not trained:
            raise ArtError(f"{where}: no choice has log-probabilities: ask the server with logprobs=True")
        messages = [_message(entry) for entry in entries]
        sample, ahead = None, list[Fields]()
        for k, entry in enumerate(entries[: trained[-1] + 1]):
            here, drawn = f"{where}, message {k}", k in trained
            self.counters["choices_without_logprobs"] += "message" in entry and not drawn
            if messages[k]["role"] != "assistant" or (sample is None and not drawn):
                ahead.append(messages[k])
                continue
            try:
                if sample is None:
                    sample = Sample(self.chat.opening(ahead, tools), [], mask=[])
                    sample.temperature = self.temperature
                    sample.policy_version = self.version if version is None else version
                else:
                    sample.extend(self.chat.observation(sample.token_ids, ahead))
                if drawn:
                    seen = self.chat.opening(messages[:k], tools)
                    self.counters["turns_reencoded"] += seen != sample.prompt_ids + sample.token_ids
                    sample.append(self._turn(sample, entry, here))
                else:
                    sample.extend(self.chat.answer(messages[k]))
            except EngineError as error:
                raise ArtError(f"{here}: {error}") from error
            ahead = []
        assert sample is not None  # the first trained choice opened it
        sample.reward = float(_get(trajectory, "reward", 0.0))
        sample.info = {
            "metrics": dict(_get(trajectory, "metrics", {})),
            "metadata": dict(_get(trajectory, "metadata", {})),
            _BETWEEN: [messages[a + 1 : b] for a, b in pairwise(trained)],
        }
        return sample

    def _turn(self, sample: Sample, choice: Fields, where: str) -> Sample:
        """The choice as a sample that continues ``sample``."""
        content = _logprobs(choice)
        ids = [_token_id(entry["token"], f"{where}, token {n}") for n, entry in enumerate(content)]
        logprobs = [float(entry["logprob"]) for entry in content]
        for n, value in enumerate(logprobs):
            if not math.isfinite(value):
                raise ArtError(f"{where}, token {n}: its log-probability is {value}")
        return Sample(
            sample.prompt_ids + sample.token_ids,
            ids,
            logprobs,
            list(logprobs),
            policy_version=sample.policy_version,
            finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
            text=choice["message"].get("content") or "",
            temperature=self.temperature,
        )

    # -- writing ---

    def _fields(
        self,
        sample: Sample,
        prompt: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        choice: Callable[[Fields], Any],
        where: str,
    ) -> Fields:
        if sample.reward is None:
            raise ArtError(f"{where}: it has no reward")
        recorded, mask = sample.policy_logprobs, sample.trained_mask()
        if len(recorded) != len(mask) or any(map(math.isnan, compress(recorded, mask))):
            raise ArtError(f"{where}: a trained token has no log-probability")
        turns = sample.turns()
        between = sample.info.get(_BETWEEN, [])
        if len(between) != len(turns) - 1:
            raise ArtError(
                f'{where}: {len(turns)} turns, and info["{_BETWEEN}"] has the messages of {len(between)} '
                "places between them"
            )
        said: list[Any] = [dict(message) for message in prompt]
        for (start, end), messages in zip(turns, [*between, []], strict=True):
            last = end == len(sample.token_ids)
            ended = sample.finish_reason if last else "stop"
            said.append(choice(self._choice(sample, start, end, ended, len(said))))
            said.extend(dict(message) for message in messages)
        return {
            "messages_and_choices": said,
            "tools": [dict(tool) for tool in tools] or None,
            "reward": sample.reward,
            "initial_policy_version": None if sample.policy_version < 0 else sample.policy_version,
            "metrics": dict(sample.info.get("metrics", {})),
            "metadata": dict(sample.info.get("metadata", {})),
        }

    def _choice(self, sample: Sample, start: int, end: int, ended: str, place: int) -> Fields:
        """The turn [start, end) of the sample as the fields of a choice of OpenAI's."""
        ids = sample.token_ids[start:end]
        reply = self.chat.read(ids)
        message: Fields = {"role": "assistant", "content": reply.content or (None if reply.calls else "")}
        if reply.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{place}_{n}",
                    "type": "function",
                    "function": {"name": c.name, "arguments": json.dumps(c.arguments, ensure_ascii=False)},
                }
                for n, c in enumerate(reply.calls)
            ]
        logprobs: list[Fields] = [
            {"token": f"{_TOKEN}{token}", "logprob": value, "bytes": None, "top_logprobs": []}
            for token, value in zip(ids, sample.policy_logprobs[start:end], strict=True)
        ]
        reason = "tool_calls" if reply.calls else "length" if ended in ("length", "context") else "stop"
        return {
            "finish_reason": reason,
            "index": 0,
            "message": message,
            "logprobs": {"content": logprobs, "refusal": None},
        }


def _get(record: Any, name: str, default: Any) -> Any:
    """An attribute, or a key of a mapping."""
    return record.get(name, default) if isinstance(record, Mapping) else getattr(record, name, default)


def _entry(message: Any, where: str) -> Fields:
    """A message or a choice as a mapping."""
    entry = message.model_dump(mode="json") if hasattr(message, "model_dump") else message
    spoken = entry.get("message", entry) if isinstance(entry, Mapping) else None
    if not isinstance(spoken, Mapping) or "role" not in spoken:
        raise ArtError(f"{where}: neither a message nor a choice: {message!r:.60}")
    return dict(entry)


def _message(entry: Fields) -> Fields:
    """The message of an entry, without the keys that OpenAI's answers have beyond those of a question."""
    spoken = entry.get("message", entry)
    kept = ("role", "content", "name", "tool_calls", "tool_call_id")
    return {name: spoken[name] for name in kept if spoken.get(name) is not None}


def _logprobs(entry: Fields) -> list[Fields]:
    """The log-probabilities of a choice's tokens; none for a message."""
    told = entry.get("logprobs") or {}
    return (told.get("content") or []) if "message" in entry else []


def _token_id(name: str, where: str) -> int:
    number = name.removeprefix(_TOKEN)
    if number == name or not number.isdecimal():
        raise ArtError(
            f'{where}: {name!r:.40} names no id: ask the server with "return_tokens_as_token_ids": true'
        )
    return int(number)


def _shorten_prompt(sample: Sample, length: int) -> None:
    """Move what lies beyond ``length`` from the prompt to the tokens, as context."""
    moved = sample.prompt_ids[length:]
    zeros = [0.0] * len(moved)
    sample.prompt_ids = sample.prompt_ids[:length]
    sample.mask = [False] * len(moved) + sample.trained_mask()
    sample.token_ids = moved + sample.token_ids
    sample.logprobs = zeros + sample.logprobs
    sample.policy_logprobs = [*zeros, *sample.policy_logprobs]
