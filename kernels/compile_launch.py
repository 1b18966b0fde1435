"""One launch compiled ahead of time for one target, on a machine without a GPU: what it needs of the device."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proactor.kernels.errors import KernelError
from proactor.kernels.jit import triton
from proactor.kernels.op import Launch

KIB = 1024
SHARED = {
    "sm_80": 163 * KIB,
    "sm_86": 99 * KIB,
    "sm_89": 99 * KIB,
    "sm_90": 227 * KIB,
    "sm_100": 227 * KIB,
    "sm_120": 99 * KIB,
    "gfx942": 64 * KIB,
}
"""Shared memory that one program may have, by target: the compiler goes beyond it without complaint."""
TARGETS = tuple(SHARED)
TENSOR_MEMORY = 512
"""Columns of tensor memory (sm_100)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel needs of the device: registers a thread; bytes spilled (NVIDIA) or registers spilled
    (AMD); bytes of stack and of shared memory.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    tensor_memory: int = 0


def build(launch: Launch, target: str, aligned: bool) -> Any:
    """Triton's compiled kernel, its pointers aligned to 16 bytes; ``aligned``: integers are multiples of 16,
    but for those it does not specialise on.

    Raises KernelError for an argument with neither type nor value, and what the compiler raises.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    unknown = [n for n in names if n not in launch.types and n not in launch.constants]
    unknown += sorted((launch.types.keys() | launch.constants.keys()) - set(names))
    if unknown:
        raise KernelError(
            f"{launch.name}: arguments without type or value, or not the kernel's: {', '.join(unknown)}"
        )
    signature = {n: "constexpr" if n in launch.constants else launch.types[n] for n in names}
    wide = ("*", "i32", "i64") if aligned else ("*",)
    loose = {p.name for p in launch.kernel.params if p.do_not_specialize}
    known = [i for i, n in enumerate(names) if signature[n].startswith(wide) and n not in loose]
    attributes = {(i,): [["tt.divisibility", 16]] for i in known}
    source = ASTSource(launch.kernel, signature, dict(launch.constants), attributes)
    amd = target.startswith("gfx")
    machine = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    return triton.compile(
        source, target=machine, options={"num_warps": launch.warps, "num_stages": launch.stages}
    )


def compile_launch(launch: Launch, target: str, aligned: bool) -> Compiled:
    """Compile and read what the result needs from the machine code itself."""
    made = build(launch, target, aligned)
    if target.startswith("gfx"):
        return amd_needs(made.asm["amdgcn"], made.metadata.shared)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernel.cubin"
        code.write_bytes(made.asm["cubin"])
        usage = run_tool("cuobjdump", "-res-usage", str(code))
        registers, stack = (int(n) for n in re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
        spills = _spilled(made.asm["ptx"], target, Path(folder)) if stack else 0
    return Compiled(
        registers, spills, stack, made.metadata.shared, getattr(made.metadata, "tmem_size", 0) or 0
    )


def _spilled(ptx: str, target: str, folder: Path) -> int:
    """Bytes of spill stores and loads: the assembler alone tells them from arrays on the stack."""
    from triton.backends.nvidia.compiler import get_ptxas

    capability = int(target.removeprefix("sm_"))
    (folder / "kernel.ptx").write_text(ptx)
    name = f"--gpu-name={target}{'a' if capability >= 90 else ''}"
    command = [
        get_ptxas(capability).path,
        "-v",
        name,
        str(folder / "kernel.ptx"),
        "-o",
        str(folder / "again.cubin"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", said))


def amd_needs(assembly: str, shared: int) -> Compiled:
    """Registers, scratch and spills from the metadata at the end of AMD assembly."""

    def read(key: str) -> int:
        return max(int(n) for n in re.findall(rf"^\s*(?:- )?\.{key}:\s*(\d+)", assembly, re.MULTILINE))

    spills = read("vgpr_spill_count") + read("sgpr_spill_count")
    return Compiled(read("vgpr_count"), spills, read("private_segment_fixed_size"), shared)


def run_tool(name: str, *arguments: str) -> str:
    """What one of the tools inside Triton's wheel (cuobjdump, nvdisasm) prints."""
    from triton import knobs

    command = [getattr(knobs.nvidia, name).path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def problem(needs: Compiled, target: str, spills: bool = True) -> str:
    """Why a kernel that needs this is not fit for ``target``; empty when it is. ``spills``: whether they
    count.
    """
    if spills and needs.spills:
        unit = "registers" if target.startswith("gfx") else "bytes"
        return f"spills {needs.spills} {unit}, {needs.stack} bytes of stack at {needs.registers} registers"
    if needs.shared > SHARED[target]:
        return f"{needs.shared / KIB:.1f} KiB of shared memory, the device has {SHARED[target] / KIB:.0f}"
    if needs.tensor_memory > TENSOR_MEMORY:
        return f"{needs.tensor_memory} columns of tensor memory, the device has {TENSOR_MEMORY}"
    return ""


def opcodes(launch: Launch, target: str) -> Counter[str]:
    """How often each SASS opcode stands in a kernel, by its first part (HGMMA, LDL, LDS, ...)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
        code.write(build(launch, target, aligned=True).asm["cubin"])
        code.flush()
        text = run_tool("nvdisasm", "-c", code.name)
    return Counter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text, re.MULTILINE))
