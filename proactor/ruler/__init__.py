"""RULER: candidates scored against one another by a judge. Rubrics, judges, and how far two scores agree.

from proactor.ruler import Ruler, RuleJudge

ruler = Ruler(RuleJudge(), rubric="custom")
scores = await ruler.score(candidates)  # [{"ruler": 0.9, "timing": …}, …]; None: dropped and counted
"""

from __future__ import annotations

from proactor.ruler.build import build_judge as build_judge
from proactor.ruler.endpoint_judge import EndpointJudge as EndpointJudge
from proactor.ruler.engine_judge import EngineJudge as EngineJudge
from proactor.ruler.judge import Judge as Judge
from proactor.ruler.judge import JudgeFailure as JudgeFailure
from proactor.ruler.question import JudgeRequest as JudgeRequest
from proactor.ruler.rank_agreement import RankAgreement as RankAgreement
from proactor.ruler.rank_agreement import compare_rankings as compare_rankings
from proactor.ruler.rank_agreement import spread as spread
from proactor.ruler.rubric import RUBRICS as RUBRICS
from proactor.ruler.rubric import Rubric as Rubric
from proactor.ruler.rubric import RulerError as RulerError
from proactor.ruler.rule_judge import RuleJudge as RuleJudge
from proactor.ruler.ruler import Ruler as Ruler
from proactor.ruler.ruler import ruler_scores as ruler_scores

__all__ = [
    "RankAgreement",
    "EndpointJudge",
    "EngineJudge",
    "Judge",
    "JudgeFailure",
    "JudgeRequest",
    "RUBRICS",
    "Rubric",
    "RuleJudge",
    "Ruler",
    "RulerError",
    "compare_rankings",
    "build_judge",
    "ruler_scores",
    "spread",
]
