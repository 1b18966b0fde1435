"""verifiers 0.4 samples through the server, as its rollouts would: `make test-neighbours`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proactor.engine import Engine, Sampling
from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.proactor.server.served import Served

ASK = [{"role": "user", "content": "Is Friday dry?"}]
KEY = "a-key-of-the-first-user"


@pytest.fixture(scope="module")
def neighbour(repo_root: Path) -> Path:
    """The Python of verifiers' own environment; its pins exclude ours."""
    python = Path(os.environ.get("NEIGHBOURS", repo_root / ".venv-neighbours")) / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no {python}: make test-neighbours builds it")
    return python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("neighbour") / "model", context=1024)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = load(folder, deterministic=True, kv_tokens=4096)
    yield engine
    engine.release()


def test_verifiers_gets_the_engines_tokens(neighbour: Path, folder: Path, engine: Engine) -> None:
    with Served(engine, adapter="policy", keys=(KEY,)) as served:
        script = Path(__file__).with_name("verifiers_client.py")
        done = subprocess.run(
            [neighbour, script, served.url, "policy", folder],
            env={**os.environ, "SERVER_KEY": KEY, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    ids = engine.encode(ASK)
    stops = tuple(engine.eos_ids)
    [sample] = engine.sample([ids], Sampling(max_tokens=12, seed=5, stop_ids=stops))[0].samples
    for turn in ("turn 0", "turn 1"):
        assert told[turn] == {
            "prompt_ids": ids,
            "completion_ids": sample.token_ids,
            "logprobs": sample.policy_logprobs,
            "finish_reason": "stop" if sample.finish_reason == "stop" else "length",
        }
    assert "exceeds maximum context length (1024)" in told["too long"]
    assert told["relayed"] == {"content": sample.text, "tokens": len(sample.token_ids)}
