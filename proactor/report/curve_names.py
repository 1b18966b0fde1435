"""The keys of metrics.jsonl for a reader: section, name and sentence of each.

An unknown key belongs to the section "Other", under its own name.
"""

from __future__ import annotations

import re

DECISIVE = "Learning"
"""The section that people decide by; it stands open, the others are folded."""
EVALUATED = "Evaluations on dev"
EPISODES, ENDED = "Episodes", "How episodes end"
SECTIONS = (
    DECISIVE,
    EPISODES,
    ENDED,
    "Reward parts",
    "Coefficients",
    "Judge",
    EVALUATED,
    "Health",
    "Work",
    "Other",
)
KNOWN: tuple[tuple[str, str, str, str], ...] = (
    (
        r"reward(_mean|/mean)?",
        DECISIVE,
        "Reward",
        "mean over the samples of a step; band: one standard deviation",
    ),
    (
        r"held_?out_loss|eval[/_]loss|nll",
        DECISIVE,
        "Held-out loss",
        "nats a token on what is not trained on",
    ),
    (
        r"eval[/_](turn_)?reward",
        DECISIVE,
        "Reward, evaluated",
        "one answer a turn, on the agent's own board",
    ),
    (
        r"eval[/_]first_fire_f1",
        DECISIVE,
        "First-fire F1, evaluated",
        "all required values right, early or on time, one fire a reference",
    ),
    (
        r"eval[/_]values_right",
        DECISIVE,
        "Values right, evaluated",
        "among first fires with half of the values right",
    ),
    (r"score", DECISIVE, "Score", "mean over the episodes of a step"),
    (r"eval_score", DECISIVE, "Score, evaluated", "each dev task once"),
    (r"user_actions", DECISIVE, "U", "actions of an episode that involved the user"),
    (r"eval_user_actions", DECISIVE, "U, evaluated", "actions of an episode that involved the user, on dev"),
    (r"ending/.*", ENDED, "", "episodes of a step that ended so"),
    (r"eval_ending/.*", ENDED, "", "episodes of the dev tasks that ended so"),
    (r"solved", EPISODES, "Solved", "share of the episodes, as the gym or eval.success says"),
    (r"pass_u\d", EPISODES, "", "share solved with at most so many actions that involved the user"),
    (r"user_rate(_macro)?", EPISODES, "", "share of actions that involved the user"),
    (r"episodes.*|groups_with.*|groups_too_small|flat_steps|host/.*|tokens_of_episodes", EPISODES, "", ""),
    (r"demonstrations|left_out_.*", EPISODES, "", "of the expert, in stage A"),
    (r"(sft/)?loss", DECISIVE, "Loss", "nats a token, supervised"),
    (
        r".*zero_spread.*",
        DECISIVE,
        "Groups without spread",
        "all samples scored the same: nothing to learn from",
    ),
    (r"acts/ready", DECISIVE, "Acts, an action is ready", "share of the answers at such decisions"),
    (r"acts/not_ready", DECISIVE, "Acts, none is ready", "share of the answers at such decisions"),
    (
        r"pull/.*",
        "Reward parts",
        "",
        "advantages of answers that act, over the samples: below 0 they teach waiting",
    ),
    (r"grpo/loss", "Health", "Policy loss", "its value says little: near 0 by construction"),
    (
        r"parts?[/_.].*_within",
        "Reward parts",
        "",
        "mean deviation inside a group: the only spread that gives gradient",
    ),
    (r"parts?[/_.].*|reward[/_.](?!mean|std).*", "Reward parts", "", "mean over the samples of a step"),
    (r"coef[/_].*", "Coefficients", "", "of a part of the reward, at this step"),
    (r"judge[/_]spread", "Judge", "Spread", "mean deviation of its scores inside a group"),
    (r"judge[/_]agreement", "Judge", "Agreement", "share of pairs that it orders as the metric reward does"),
    (r"groups_redrawn|redraws", DECISIVE, "", "groups without spread that were drawn again"),
    (r"judge[/_].*|groups_dropped|skipped_update|seconds_judging|seconds_waiting", "Judge", "", ""),
    (r"eval[/_].*", EVALUATED, "", ""),
    (r".*unparsed.*", "Health", "Unparsed", "share of outputs that could not be read in full"),
    (r"unread/.*", "Health", "", "pieces of outputs that could not be read, by reason"),
    (r".*truncated.*", "Health", "Truncated", "share of outputs cut off at the token limit"),
    (r"entropy.*", "Health", "Entropy", "nats a token: how undecided the policy still is"),
    (r"clip_share.*", "Health", "Clipped", "share of tokens whose ratio was clipped"),
    (r"capped_share", "Health", "Capped", "share of tokens with an importance weight above the cap"),
    (r"importance_cap", "Health", "Importance cap", "of all updates of the step; 0: none"),
    (r"overlong_share", "Health", "Overlong", "share of samples whose reward fell with their length"),
    (r"grad_norm", "Health", "Gradient norm", "before clipping"),
    (r"adapter_norm", "Health", "Adapter norm", "distance from the base model"),
    (r"sampler_trainer_gap.*", "Health", "Sampler-trainer gap", "difference of their log-probabilities"),
    (r"ratio.*", "Health", "", "policy ratio, new to old"),
    (r"(mean_)?(kl|approx_kl).*|nonfinite.*|zero_gradient|masked_groups", "Health", "", ""),
    (r"tokens?_computed.*", "Work", "Tokens computed", "by the trainer, a step"),
    (r"tokens?_avoided.*", "Work", "Tokens avoided", "shared in the tree, so not computed again"),
    (r".*tokens.*|samples|groups|examples|unknowable", "Work", "", ""),
    (r"lr|learning_rate", "Work", "Learning rate", ""),
    (
        r"seconds_reduction",
        "Work",
        "Waiting for ranks",
        "the longest that one had its gradient before all had",
    ),
    (r".*(seconds|time|per_second|bytes|memory).*", "Work", "", ""),
)
"""(key pattern, section, name, sentence); the first that matches the whole key wins."""


def describe(key: str) -> tuple[str, str, str]:
    """(section, name, sentence) of a key."""
    readable = (
        re.sub(r"^(train|eval|parts?)[/_.]", "", key.replace("_within", ", spread in a group"))
        .replace("_", " ")
        .replace("/", " · ")
        .strip()
    )
    readable = readable[:1].upper() + readable[1:]
    for pattern, section, name, help in KNOWN:
        if re.fullmatch(pattern, key.removeprefix("train/")):
            return section, name or readable, help
    return "Other", readable, ""


def order_of(key: str) -> tuple[int, str]:
    """Where a key's chart stands: by its entry in `KNOWN`, then by name."""
    bare = key.removeprefix("train/")
    return next((i for i, known in enumerate(KNOWN) if re.fullmatch(known[0], bare)), len(KNOWN)), key
