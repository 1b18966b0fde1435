"""The agent's routes: decisions as JSON, and one line with 400 for what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from proactor.agent import Decision
from proactor.agent.draft import Proposal
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.server.agent_routes import add_agent_routes
from tests.proactor.agent.agents import load_agent, run_folder, scripted
from tests.proactor.dialogues import pending, ready

CATALOG = Catalog(
    tools=(
        Tool(name="status", parameters=(Parameter(name="order"),)),
        Tool(name="cancel", confirm=True, parameters=(Parameter(name="order"),)),
    )
)


@pytest.fixture
def client(tiny_model: Path, tmp_path: Path) -> TestClient:
    run = run_folder(tmp_path / "run", tiny_model, CATALOG)
    drafts = {1: [Proposal(ready("status", order="1"))], 2: [Proposal(pending("cancel", order="1"))]}
    app = FastAPI()
    app.include_router(add_agent_routes(APIRouter(), scripted(load_agent(run, log=None), drafts)))
    return TestClient(app)


def test_a_conversation(client: TestClient) -> None:
    def post(call: str, **body: object) -> dict[str, object]:
        answer = client.post(f"/v1/agent/{call}", json={"conversation": "c", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    fired = Decision.model_validate(post("observe", text="where is order 1", tools=["status", "cancel"]))
    assert [(act.id, act.kind, act.name) for act in fired.actions] == [("1.1", "fire", "status")]
    assert post("result", act="1.1", content={"status": "shipped"}) == {"ok": True}
    assert Decision.model_validate(post("observe", text="then cancel it")).kind == "ask"
    assert Decision.model_validate(post("confirm")).fires[0].params == {"order": "1"}
    assert post("close") == {"ok": True}


@pytest.mark.parametrize(
    ("call", "body", "code", "said"),
    [
        ("observe", {"text": "x", "speaker": "robot"}, 400, "speaker 'robot' is not known"),
        ("observe", {"text": "x", "tools": ["refund"]}, 400, "offers 'refund'"),
        ("observe", {"text": 3}, 422, "valid string"),
        ("observe", {"text": "x", "mood": "fine"}, 422, "Extra inputs"),
        ("result", {"act": "9.9"}, 400, "is not open"),
        ("confirm", {}, 400, "is not open"),
        ("close", {}, 400, "is not open"),
    ],
)
def test_what_cannot_be_used(
    client: TestClient, call: str, body: dict[str, object], code: int, said: str
) -> None:
    answer = client.post(f"/v1/agent/{call}", json={"conversation": "c", **body})
    assert answer.status_code == code and said in answer.text
