"""A judge from its options in a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proactor.endpoint import Endpoint
from proactor.kinds import build_kind
from proactor.ruler.endpoint_judge import EndpointJudge
from proactor.ruler.engine_judge import EngineJudge
from proactor.ruler.judge import Judge
from proactor.ruler.rubric import RulerError
from proactor.ruler.rule_judge import RuleJudge


def _endpoint_judge(max_tokens: int = 2048, **options: Any) -> Judge:
    return EndpointJudge(Endpoint(**options), max_tokens)


_KINDS: dict[str, Callable[..., Judge]] = {
    "rule": RuleJudge,
    "engine": EngineJudge,
    "endpoint": _endpoint_judge,
}


def build_judge(spec: str | Mapping[str, Any]) -> Judge:
    """The judge of ``spec``: ``"rule"``, ``"engine"``, or a mapping with ``kind`` and that judge's fields:

        judge: rule
        judge: {kind: engine, adapter: runs/judge/best}
        judge: {kind: endpoint, model: gpt-4.1-mini, timeout: 60}

    Raises RulerError for an unknown kind or field, EndpointSetupError for an endpoint's impossible value.
    """
    return build_kind("judge", spec, _KINDS, RulerError)
