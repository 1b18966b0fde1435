"""A run's folder without its training, and logged dialogues given to an agent turn by turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from proactor.agent import Agent, Decision
from proactor.agent.conversation import Conversation
from proactor.agent.draft import Draft, Proposal
from proactor.calibration.thresholds import Thresholds
from proactor.catalogs import write_catalog
from proactor.config import RunConfig
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from tests.proactor.runs import values

SIZES = Parameter(name="size", type="enum", values=("small", "large"))
CATALOG = Catalog(
    tools=(
        Tool(name="status", parameters=(Parameter(name="order"),)),
        Tool(name="cancel", confirm=True, parameters=(Parameter(name="order"),)),
        Tool(name="coffee", parameters=(SIZES,)),
    )
)


def run_folder(
    folder: Path, model: Path, catalog: Catalog, thresholds: Thresholds | None = None, **changes: Any
) -> Path:
    """A run of the bare model: load it with ``adapter="none"``."""
    config = RunConfig.model_validate(values(model, folder.parent, **changes))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    write_catalog(catalog, folder / "catalog.json")
    if thresholds is not None:
        (folder / "thresholds.json").write_text(thresholds.model_dump_json())
    return folder


def load_agent(folder: Path, **options: Any) -> Agent:
    """The agent of `run_folder`, with its thresholds if it has any."""
    file = folder / "thresholds.json"
    given = {"thresholds": file} if file.exists() and not options.get("greedy") else {}
    return Agent.load(folder, **{"adapter": "none", **given, **options})


def heard(agent: Agent, dialogue: Dialogue) -> list[Decision]:
    """The decisions of one dialogue."""
    agent.open(dialogue.id, dialogue.tools)
    decisions = [agent.observe(dialogue.id, turn) for turn in dialogue.turns]
    assert [d.decided for d in decisions] == [t.speaker == "user" for t in dialogue.turns]
    return [d for d in decisions if d.decided]


def heard_at_once(agent: Agent, dialogues: Sequence[Dialogue]) -> dict[str, list[Decision]]:
    """The decisions of all dialogues, each turn of one after its last, all dialogues at once."""

    async def hear(dialogue: Dialogue) -> list[Decision]:
        agent.open(dialogue.id, dialogue.tools)
        decisions = [await agent.observe_async(dialogue.id, turn) for turn in dialogue.turns]
        return [d for d in decisions if d.decided]

    async def all_of_them() -> list[list[Decision]]:
        return await asyncio.gather(*map(hear, dialogues))

    return dict(zip([d.id for d in dialogues], asyncio.run(all_of_them()), strict=True))


class Scripted:
    """A decider that knows what it proposes after each turn, without a model."""

    def __init__(self, drafts: Mapping[int, Sequence[Proposal]]) -> None:
        self.drafts = drafts

    async def draft(self, conversation: Conversation, upto: int) -> Draft:
        return Draft(tuple(self.drafts.get(upto, ())))

    def keep(self, conversation: Conversation, upto: int, draft: Draft, fired: tuple[Action, ...]) -> None:
        conversation.own.board = conversation.own.board.after(conversation.dialogue(upto), upto, fired)


def scripted(agent: Agent, drafts: Mapping[int, Sequence[Proposal]], log: Path | None = None) -> Agent:
    """An agent on the engine of ``agent`` that proposes ``drafts`` by turn."""
    made = Agent(agent.engine, agent.encoder, agent.run, log=log)
    made._decider = Scripted(drafts)
    return made
