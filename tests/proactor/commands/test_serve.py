"""``proactor serve`` as a process, and what it refuses before it loads anything."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.catalogs import write_catalog
from proactor.commands.serve import _agent_routers
from proactor.dialogue.catalog import Catalog, Tool
from proactor.engine import EngineError, LoRA, ProactorError
from proactor.event_loop import BackgroundLoop
from proactor.server.limits import Limits
from proactor.server.opening import Opening
from tests.proactor.commands.calls import refusal
from tests.proactor.runs import adapter_run

KEY = "a-key-of-the-first-user"


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `train` leaves it, as far as a server reads it."""
    folder = adapter_run(
        tmp_path_factory.mktemp("runs") / "support",
        model,
        engine={"kv_tokens": 2048},
        data={"path": "/gone"},
    )
    write_catalog(Catalog(tools=(Tool(name="status"),)), folder / "catalog.json")
    return folder


@pytest.fixture(scope="module")
def process(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A server of the run, with a key, and its address."""
    key_file = tmp_path_factory.mktemp("keys") / "keys"
    key_file.write_text(KEY + "\n")
    arguments = ["serve", run, "--port", "0", "--key-file", key_file, "--drain", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "proactor.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines = []
    while not (line := process.stdout.readline()).startswith("serving "):
        lines.append(line)
        assert line, lines
    yield process, line.split(" at ")[1].strip()
    process.kill()
    process.wait()


def asked(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=60)


def test_a_run_is_served_until_it_is_asked_to_end(process: tuple[Any, str], run: Path) -> None:
    server, url = process
    names = [card["id"] for card in json.load(asked(url, "/models"))["data"]]
    assert names == ["tiny", "support"]
    turn = {"conversation": "c", "text": "where is my order", "tools": ["status"]}
    decision = json.load(asked(url, "/agent/observe", turn))
    assert decision["decided"] and decision["turn"] == 1
    body = {"model": "support", "prompt": "a", "max_tokens": 600, "ignore_eos": True, "stream": True}
    with asked(url, "/completions", body) as answer:
        assert answer.readline().startswith(b"data: {")
        server.send_signal(signal.SIGTERM)
        events = answer.read()
    assert events.endswith(b"data: [DONE]\n\n")
    said = server.stdout.read()
    assert server.wait(60) == 0 and "all requests have ended" in said
    assert "Traceback" not in said and KEY not in said
    kept = (run / "decisions.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in kept] == ["started", "opened", "turn", "decision"]


def test_a_run_without_an_agent_is_served_all_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tools are gone, or it is none on dialogues; and another adapter than its own is no agent."""
    shutil.copytree(run, tmp_path / "bare")
    (tmp_path / "bare" / "catalog.json").unlink()
    opening = Opening.of(str(tmp_path / "bare"))
    home, engine = BackgroundLoop("agent"), opening.load()
    assert _agent_routers(opening, engine, home, Limits()) == []
    said = capsys.readouterr().out
    assert said.startswith("without /v1/agent: ") and "/gone" in said and said.count("\n") == 1
    assert Opening.of(str(run), [f"mine={run / 'best'}"]).agent(engine) is None
    assert Opening.of(str(run / ".." / ".." / "nowhere")).agent(engine) is None
    engine.release()


def test_a_busy_port_and_an_open_door_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(capsys, "serve", model, "--port", port)
    assert f"127.0.0.1:{port}: Address already in use" in said and "--port" in said
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert "keys are needed: --key-file" in refusal(capsys, "serve", model, "--host", host)
    assert "no such address" in refusal(capsys, "serve", model, "--host", "no.such.host.invalid")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--adapter", "one"], "--adapter one: write NAME=FOLDER"),
        (["--adapter", "one=/nowhere"], "/nowhere: no adapter there"),
        (["--adapter", "tiny=/nowhere"], "the model's own name"),
        (["--adapter", "a=b", "--adapter", "c=d"], "one adapter is served"),
        (["--adapters-from", "/tmp"], "no adapter to swap"),
        (["--key-file", "/nowhere"], "/nowhere: no such file"),
        (["--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY"),
        (["kv_tokens=3"], "write engine.KEY=VALUE"),
        (["engine.kv_token=3"], "did you mean 'kv_tokens'?"),
        (["--timeout", "0"], "timeout=0"),
    ],
)
def test_what_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refusal(capsys, "serve", model, *arguments)


def test_a_model_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(capsys, "serve", tmp_path / "empty", "--port", 0)


def test_a_model_and_its_adapter_have_two_names(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's folder may be named as its model's; one name would never reach the adapter."""
    shutil.copytree(run, tmp_path / "tiny")
    opening = Opening.of(str(tmp_path / "tiny"))
    assert (opening.base, opening.adapter) == ("tiny-base", "tiny")
    assert "both named 'support'" in refusal(capsys, "serve", run, "--name", "support", "--port", 0)


def test_what_a_run_and_a_model_open_as(run: Path, model: Path) -> None:
    opened = Opening.of(str(run), [], ["engine.kv_tokens=4096"])
    assert (opened.base, opened.adapter, opened.folder) == ("tiny", "support", run / "best")
    assert opened.lora == LoRA(rank=4, alpha=8) and opened.engine.kv_tokens == 4096
    bare = Opening.of(str(run), ["none"])
    assert (bare.lora, bare.folder, bare.engine.kv_tokens) == (None, None, 2048)
    other = Opening.of(str(run), [f"mine={run / 'best'}"])
    assert (other.adapter, other.folder) == ("mine", run / "best")
    beside = Opening.of(str(model), [f"mine={run / 'best'}"])
    assert (beside.base, beside.adapter, beside.lora) == ("tiny", "mine", LoRA(rank=4, alpha=8.0))
    with pytest.raises(ProactorError, match="no adapter there"):
        Opening.of(str(run), ["last"])
    with pytest.raises(EngineError, match="kv_tokens"):
        Opening.of(str(run), [], ["engine.kv_tokens=-1"])
