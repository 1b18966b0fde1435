"""The session of steps: each has its own time, what is missing is named, what was written stays."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import pytest

from bench.gpu import session
from bench.gpu.__main__ import read_options
from bench.gpu.session import DECISIVE, OTHERS, Session, Step, install, main, steps
from proactor.kernels.registry import OPS


def python(name: str, code: str, seconds: float = 60.0, needs: str = "") -> Step:
    return Step(name, seconds, (sys.executable, "-c", code), needs)


def test_steps_fail_hang_and_go_on(tmp_path: Path) -> None:
    running = Session(tmp_path, 120.0, tmp_path / "packages")
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(300)'])"
    begun = time.monotonic()
    for step in (
        python("fails", "print('so'); raise SystemExit(3)"),
        python("hangs", child, 1.0),
        Step("absent", 5.0, ("no-such-program",)),
        python("missing", "", needs="no-such-program"),
        python("fine", "print('written')"),
    ):
        running.run(step)
    assert time.monotonic() - begun < 60
    record = {entry["step"]: entry for entry in json.loads((tmp_path / "session.json").read_text())}
    assert [record[name].get("code", "left out") for name in record] == [3, None, 127, "left out", 0]
    assert record["missing"]["left_out"] == "no-such-program is not installed"
    assert running.failed == ["fails", "hangs", "absent"]
    log = (tmp_path / "session.log").read_text()
    assert log.index("===== fails") < log.index("so\n") < log.index("===== fine") < log.index("written\n")


def test_no_step_begins_without_time(tmp_path: Path) -> None:
    running = Session(tmp_path, 20.0, tmp_path)
    running.run(python("long", "", 200.0))
    running.run(python("short", "", 10.0))
    assert [entry.get("left_out") for entry in running.record] == ["no time left", None]


def test_uncached_memory_is_for_the_sanitizer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable acts by being there, whatever its value, and would slow everything else down."""
    monkeypatch.setattr(session.shutil, "which", lambda name: name)
    running = Session(tmp_path, 60.0, tmp_path)
    code = "import os, sys; sys.exit('PYTORCH_NO_CUDA_MEMORY_CACHING' in os.environ)"
    running.run(python("plain", code))
    running.run(python("checked", code, needs="compute-sanitizer"))
    assert [entry["code"] for entry in running.record] == [0, 1]


def test_packages_come_from_wheels(tmp_path: Path) -> None:
    wheels, packages = tmp_path / "wheels", tmp_path / "packages"
    wheels.mkdir()
    name = "brought-1.0"
    with ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("brought.py", "value = 7\n")
        info = f"{name}.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{info}/RECORD", f"brought.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    running = Session(tmp_path, 120.0, packages)
    running.run(install(wheels, packages))
    running.run(python("use", "import brought; raise SystemExit(brought.value)"))
    assert [entry["code"] for entry in running.record] == [0, 7]


def test_every_operation_is_in_one_step_and_every_command_is_understood(tmp_path: Path) -> None:
    assert sorted((*DECISIVE, *OTHERS)) == sorted(op.name for op in OPS)
    for dry in (False, True):
        for step in steps(tmp_path, dry):
            if "bench.gpu" in step.command:
                options = read_options(step.command[step.command.index("bench.gpu") + 1 :])
                assert options.dry == dry
                assert dry or options.budget < step.seconds
    names = [step.name for step in steps(tmp_path, False)]
    assert names.index("steps") < names.index("rows") < names.index("tiles") < names.index("peers")


def test_steps_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Session, "run", lambda self, step: ran.append(step.name))
    assert main(["--out", str(tmp_path), "--from", "tiles"]) == 0
    assert ran == ["tiles", "peers", "rest"]
    ran.clear()
    main(["--out", str(tmp_path), "--only", "rows,peers", "--wheels", str(tmp_path)])
    assert ran == ["packages", "rows", "peers"]
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--from", "nowhere"])
    assert "no step nowhere: card, steps, rows" in capsys.readouterr().err


def test_the_session_needs_no_package(tmp_path: Path) -> None:
    """It begins before the wheels are installed."""
    code = "import sys; import bench.gpu.session; raise SystemExit('torch' in sys.modules)"
    running = Session(tmp_path, 60.0, tmp_path)
    running.run(Step("bare", 30.0, (sys.executable, "-S", "-c", code)))
    assert running.record[0]["code"] == 0, (tmp_path / "session.log").read_text()
    assert os.sep in str(session.ROOT)
