"""``proactor review``: the command around the page."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.proactor.commands.calls import call, refusal
from tests.proactor.review.desk_files import dialogue, put, window


def test_a_busy_port_and_wrong_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, dialogue())
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"--port {port}: in use" in refusal(capsys, "review", tmp_path, "--port", port)
    assert "no such file; WINDOWS is what" in refusal(capsys, "review", tmp_path / "none")
    assert "one file or folder" in refusal(capsys, "review", tmp_path, tmp_path)
    assert "two files" in refusal(capsys, "review", tmp_path, "--agreement")
    assert "no name" in refusal(capsys, "review", tmp_path, "--as", " ")
    other = put(tmp_path / "b", dialogue("one", domain="", turns=dialogue()["turns"][:5]))
    assert "other turns" in refusal(capsys, "review", tmp_path, "--beside", other)


def test_agreement_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = put(tmp_path, dialogue("one"), name="a.jsonl")
    b = put(tmp_path, dialogue("one", window(ready=[5, 5])), name="b.jsonl")
    call("review", "--agreement", a, b)
    said = capsys.readouterr().out
    assert "book" in said and "0.500" in said and "one: 0.50" in said


def test_it_prints_an_address_that_works_and_ends_with_ctrl_c(tmp_path: Path, repo_root: Path) -> None:
    put(tmp_path, dialogue())
    command = [sys.executable, "-m", "proactor.cli", "review", str(tmp_path), "--as", "anna"]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == f"{tmp_path}: 0 of 1 dialogues reviewed"
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urlopen(f"{address}api/overview", timeout=30) as answer:
            assert json.load(answer)["reviewer"] == "anna"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "") and "0 of 1 dialogues reviewed" in out
