"""A wheel or sdist holds one top-level name, `proactor`, with all that the commands read; a checkout does not
shadow Hugging Face's `kernels`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

IMPORTS = (
    "import proactor, proactor.engine, proactor.kernels.rope, proactor.kernels.norm; print(proactor.__file__)"
)

DEMO = (
    "from proactor.commands.train import DEMO; from proactor.config_file import load_config; "
    "config = load_config(DEMO); print(DEMO, config.folder, config.model)"
)


def build(target: str, source: Path, out: Path) -> Path:
    """Build without isolation or network, with the hatchling of the `dev` extra."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return built


def python(code: str, cwd: Path, *path: Path) -> str:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(p) for p in path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def check_wheel(wheel: Path, tmp_path: Path, repo_root: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"proactor"}
    for source in ("engine/types.py", "kernels/rope.py", "py.typed", "__init__.py"):
        assert f"proactor/{source}" in names
    for folder in ("engine", "kernels"):
        packed = {name.split("/")[-1] for name in names if name.startswith(f"proactor/{folder}/")}
        assert {p.name for p in (repo_root / folder).glob("*.py")} <= packed
    assert len(names) == len(set(names))
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert python(IMPORTS, tmp_path, site).startswith(str(site))
    demo = site / "proactor" / "configs" / "demo.yaml"
    assert python(DEMO, tmp_path, site) == f"{demo} runs/demo runs/models/demo"
    assert demo.read_bytes() == (repo_root / "configs" / "demo.yaml").read_bytes()
    for room in ("annotation", "report", "review"):
        templates = {p.name for p in (repo_root / "proactor" / room / "templates").iterdir()}
        assert {p.name for p in (site / "proactor" / room / "templates").iterdir()} == templates


def test_wheel(tmp_path: Path, repo_root: Path) -> None:
    check_wheel(build("wheel", repo_root, tmp_path / "dist"), tmp_path, repo_root)


def test_wheel_from_sdist(tmp_path: Path, repo_root: Path) -> None:
    sdist = build("sdist", repo_root, tmp_path / "dist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    check_wheel(build("wheel", source, tmp_path / "dist2"), tmp_path, repo_root)


def test_editable_install_exposes_proactor_alone(tmp_path: Path, repo_root: Path) -> None:
    """Outside the checkout there is no bare `kernels`, which bitsandbytes would take for Hugging Face's."""
    site = tmp_path / "site"
    zipfile.ZipFile(build("wheel:editable", repo_root, tmp_path / "dist")).extractall(site)
    libraries = next(p for p in sys.path if (Path(p) / "torch" / "__init__.py").is_file())
    code = (
        "import site, sys, importlib.util as u; "
        f"site.addsitedir({str(site)!r}); sys.path.append({libraries!r}); "
        "print([name for name in ('kernels', 'engine', 'bench', 'tests') if u.find_spec(name)]); " + IMPORTS
    )
    done = subprocess.run(  # -S: without the .pth files of this environment, which may hold another checkout
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    exposed, file = done.stdout.splitlines()
    assert exposed == "[]"
    assert Path(file).resolve() == repo_root / "proactor" / "__init__.py"


def test_checkout_imports_from_any_folder(tmp_path: Path, repo_root: Path) -> None:
    assert python(IMPORTS, tmp_path, repo_root) == str(repo_root / "proactor" / "__init__.py")


@pytest.mark.parametrize("first", ["checkout", "site"])
def test_huggingface_kernels_wins_the_bare_name(tmp_path: Path, repo_root: Path, first: str) -> None:
    """`import kernels` finds the installed package even with the checkout first on sys.path (`python -m`)."""
    theirs = tmp_path / "site" / "kernels"
    theirs.mkdir(parents=True)
    (theirs / "__init__.py").write_text("OWNER = 'huggingface'\n")
    path = [repo_root, theirs.parent] if first == "checkout" else [theirs.parent, repo_root]
    code = (
        f"import kernels, transformers; {IMPORTS}; import proactor.kernels; "
        "print(kernels.OWNER, proactor.kernels.__name__)"
    )
    assert python(code, tmp_path, *path).splitlines()[-1] == "huggingface proactor.kernels"


def test_without_huggingface_kernels_transformers_sees_none(tmp_path: Path, repo_root: Path) -> None:
    code = (
        "from transformers.utils.import_utils import _is_package_available as a; "
        "print(a('kernels', return_version=True)[0])"
    )
    assert python(code, repo_root, repo_root) == "False"


def test_import_is_light_and_changes_nothing(tmp_path: Path, repo_root: Path) -> None:
    code = (
        "import sys, os, random, logging, signal; env = dict(os.environ); state = random.getstate(); "
        "handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]; root = "
        "list(logging.getLogger().handlers)\n"
        "import proactor\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "import torch; threads, dtype, grad = torch.get_num_threads(), torch.get_default_dtype(), "
        "torch.is_grad_enabled(); seed = torch.initial_seed()\n"
        "import proactor.engine\n"
        "from proactor.engine import Engine\n"
        "assert (threads, dtype, grad, seed) == (torch.get_num_threads(), torch.get_default_dtype(), "
        "torch.is_grad_enabled(), torch.initial_seed())\n"
        "assert env == dict(os.environ) and state == random.getstate() and root == "
        "logging.getLogger().handlers\n"
        "assert handlers == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]\n"
        "assert not torch.distributed.is_initialized() and not torch.are_deterministic_algorithms_enabled()\n"
        "print('ok')"
    )
    assert python(code, tmp_path, repo_root) == "ok"
