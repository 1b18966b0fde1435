"""The workspace of a run: which dialogues and models it accepts, and how it plays over ranks."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.matching import exact_rule
from proactor.dialogue.prompt import Mode
from proactor.dialogue.windows import as_points
from proactor.evaluation.play import Evaluation, Replay, join_evaluations
from proactor.scoring.metrics import score_dialogue
from proactor.sources import load
from proactor.training.provenance import FitSteps, write_provenance
from proactor.training.workspace import Workspace
from tests.proactor.runs import OPTIONS, WIDE, config


def test_the_held_out_loss_is_of_the_labels_that_train(tiny_model: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(config(tmp_path, tiny_model))
    assert workspace.held_out is workspace.dev
    workspace = Workspace.open(config(tmp_path, tiny_model, "data.labels=points", "data.dev.limit=5"))
    assert workspace.held_out == tuple(map(as_points, workspace.dev))
    assert any(r.coverage != r.ready for d in workspace.dev for r in d.references), (
        "dev itself keeps its windows"
    )


def test_a_model_that_was_built_on_what_is_to_be_unseen_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    everything = load("synthetic", size=80, tools=2).dialogues
    domain = everything[0].domain
    data = WIDE | {"unseen": {"domains": [domain]}, "test": {"split": None, "limit": 2}}
    shutil.copytree(tiny_model, tmp_path / "model")
    settings = config(tmp_path, tmp_path / "model", data=data, pretrain={"seconds": 1})
    with pytest.raises(ConfigError, match=r"no pretrained\.json says whether"):
        Workspace.open(settings)
    steps = FitSteps(made=3, wanted=None, seconds=1, settled=False)
    write_provenance(settings.model, config(tmp_path, tiny_model, data=WIDE).data, steps)
    with pytest.raises(ConfigError, match=f"was built on dialogues of the domain '{domain}'"):
        Workspace.open(settings)
    write_provenance(settings.model, settings.data, steps)
    assert {d.domain for d in Workspace.open(settings).test} == {domain}


def test_evaluations_ask_for_the_required_values_of_the_catalog(tiny_model: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(config(tmp_path, tiny_model, "eval.max_tokens=8"))
    played = workspace.play(workspace.dev, "dev")
    assert played.rule == workspace.rule == exact_rule(workspace.encoder.catalog)
    assert played.rule.required and all(played.rule.required.values()) and not played.rule.optional
    every = Workspace.open(config(tmp_path, tiny_model, "eval.max_tokens=8", "eval.optional_values=true"))
    assert every.play(every.dev, "dev").rule.optional
    joined = join_evaluations(workspace.dev, [(played, 3)])
    assert joined.rule == played.rule


@pytest.mark.parametrize("mode", ["plain", "reasoning", "graph"])
def test_every_mode_plays_and_says_what_limits_cut(mode: Mode, tiny_model: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(config(tmp_path, tiny_model, f"prompt.mode={mode}", "eval.max_tokens=8"))
    evaluation = workspace.play(workspace.dev, "dev")
    assert set(evaluation.replays[0].outputs) == set(workspace.dev[0].decision_turns)
    assert evaluation.unread_graph_share == (
        1.0 if mode == "graph" else None
    )  # this model never learnt to write one
    wanted = max(len(workspace.encoder.target_ids(d, u)) for d in workspace.train for u in d.decision_turns)
    assert wanted > 8 and workspace.cut_answers(workspace.train).endswith(f"need up to {wanted} tokens")


def test_dialogues_longer_than_the_context_are_named_or_counted(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model)
    workspace = Workspace.open(settings)
    needed = {d.id: workspace.fitting.tokens_needed(d) for d in workspace.train}
    longest = max(needed, key=lambda k: needed[k])
    workspace.engine.config = dataclasses.replace(workspace.engine.config, context_length=needed[longest] - 1)
    with pytest.raises(
        ConfigError,
        match=rf"data.train: dialogue '{longest}' needs up to {needed[longest]} tokens.*too_long=drop",
    ):
        workspace.select_fitting("train", workspace.train)
    workspace.config = config(tmp_path, tiny_model, "data.too_long=drop")
    kept = workspace.select_fitting("train", workspace.train)
    assert longest not in [d.id for d in kept]
    assert workspace.dropped["train"] == len(workspace.train) - len(kept) > 0


def test_an_empty_part_and_a_wrong_option_are_named(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.dev: synthetic has no dialogues for split=dev"):
        Workspace.open(config(tmp_path, tiny_model, "data.options.size=1"))
    with pytest.raises(ConfigError, match=r"data: option sise"):
        Workspace.open(config(tmp_path, tiny_model, "data.options.sise=1"))


def test_parts_of_an_evaluation_join_in_the_order_of_the_dialogues() -> None:
    dialogues: tuple[Dialogue, ...] = load("synthetic", limit=3, **OPTIONS).dialogues

    def part(*chosen: Dialogue, unparsed: float) -> Evaluation:
        return Evaluation(
            {}, [score_dialogue(d, {}) for d in chosen], [Replay(d.id) for d in chosen], unparsed, 0.0
        )

    whole = join_evaluations(
        dialogues,
        [(part(dialogues[0], dialogues[2], unparsed=1.0), 6), (part(dialogues[1], unparsed=0.0), 2)],
    )
    assert (
        [c.dialogue for c in whole.contributions]
        == [r.dialogue_id for r in whole.replays]
        == [d.id for d in dialogues]
    )
    assert whole.unparsed_share == 0.75 and whole.metrics["decisions"] == sum(
        len(d.decision_turns) for d in dialogues
    )
