"""The judge that a config names: `judge: {kind: rule | engine | endpoint, …}`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proactor.rewards.errors import RewardError

if TYPE_CHECKING:
    from proactor.ruler import Ruler


def make_ruler(judge: str | Mapping[str, Any], rubric: str, options: Mapping[str, Any], where: str) -> Ruler:
    """A ruler with the judge of these options (`ruler.build_judge`). RewardError names what cannot be, before
    a model is loaded.
    """
    from proactor.endpoint import Endpoint, EndpointSetupError
    from proactor.ruler import EndpointJudge, Ruler, RulerError, build_judge

    try:
        ruler = Ruler(build_judge(judge), rubric=rubric, **options)
    except (RulerError, EndpointSetupError) as error:
        raise RewardError(f"{where}: {error}") from None
    if isinstance(ruler.judge, EndpointJudge):
        asked: Endpoint = ruler.judge.endpoint
        if importlib.util.find_spec("openai") is None:
            raise RewardError(
                f"{where}: judge: an endpoint needs the openai client: pip install 'proactor[openai]'"
            )
        if asked.base_url is None and not os.environ.get(asked.api_key_env):
            raise RewardError(f"{where}: judge: the environment variable {asked.api_key_env} is not set")
    return ruler
