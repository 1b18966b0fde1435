"""A judge from what a config says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proactor.endpoint import Endpoint
from proactor.ruler.judges import EndpointJudge, EngineJudge, Judge
from proactor.ruler.rubric import RulerError
from proactor.ruler.rules import RuleJudge


def _endpoint(max_tokens: int = 2048, **options: Any) -> Judge:
    return EndpointJudge(Endpoint(**options), max_tokens)


_KINDS: dict[str, Callable[..., Judge]] = {"rule": RuleJudge, "engine": EngineJudge, "endpoint": _endpoint}


def build_judge(spec: str | Mapping[str, Any]) -> Judge:
    """``"rule"``, ``"engine"``, or a mapping with ``kind`` and that judge's own fields:

        judge: rule
        judge: {kind: engine, adapter: runs/judge/best}
        judge: {kind: endpoint, model: gpt-4.1-mini, timeout: 60}

    RulerError names the kind or field that is wrong; EndpointSetupError an impossible value.
    """
    fields = {"kind": spec} if isinstance(spec, str) else dict(spec)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise RulerError(f"judge: {kind!r} is not one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        reason = str(error).rpartition("__init__() ")[2]
        raise RulerError(f"judge {kind}: {reason}") from None
