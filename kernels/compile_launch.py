"""Compile one launch for one target, without a GPU, and read what it needs from the machine code."""

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
"""Bytes of shared memory per program, by target. The compiler does not enforce the limit."""
TARGETS = tuple(SHARED)
TENSOR_MEMORY = 512
"""Columns of tensor memory (sm_100)."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiled kernel needs: registers per thread, bytes of stack and of shared memory.

    ``spills`` counts bytes on NVIDIA and registers on AMD.
    """

    registers: int
    spills: int
    stack: int
    shared: int
    tensor_memory: int = 0


def build(launch: Launch, target: str, aligned: bool) -> Any:
    """Triton's compiled kernel, for pointers aligned to 16 bytes.

    ``aligned``: integers are multiples of 16, except those the kernel is not specialised on. Raises
    KernelError for an argument without type or value, and whatever the compiler raises.
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
    """Compile, and read what the kernel needs from the machine code itself."""
    kernel = build(launch, target, aligned)
    if target.startswith("gfx"):
        return amd_needs(kernel.asm["amdgcn"], kernel.metadata.shared)
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "kernel.cubin"
        code.write_bytes(kernel.asm["cubin"])
        usage = run_tool("cuobjdump", "-res-usage", str(code))
        registers, stack = (int(n) for n in re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
        spills = _spill_bytes(kernel.asm["ptx"], target, Path(folder)) if stack else 0
    tensor_memory = getattr(kernel.metadata, "tmem_size", 0) or 0
    return Compiled(registers, spills, stack, kernel.metadata.shared, tensor_memory)


def _spill_bytes(ptx: str, target: str, folder: Path) -> int:
    """Bytes of spill stores and loads; only the assembler distinguishes them from arrays on the stack."""
    from triton.backends.nvidia.compiler import get_ptxas

    capability = int(target.removeprefix("sm_"))
    source, out = folder / "kernel.ptx", folder / "again.cubin"
    source.write_text(ptx)
    name = f"--gpu-name={target}{'a' if capability >= 90 else ''}"
    command = [get_ptxas(capability).path, "-v", name, str(source), "-o", str(out)]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))


def amd_needs(assembly: str, shared: int) -> Compiled:
    """Registers, scratch and spills from the metadata at the end of AMD assembly."""

    def read(key: str) -> int:
        return max(int(n) for n in re.findall(rf"^\s*(?:- )?\.{key}:\s*(\d+)", assembly, re.MULTILINE))

    spills = read("vgpr_spill_count") + read("sgpr_spill_count")
    return Compiled(read("vgpr_count"), spills, read("private_segment_fixed_size"), shared)


def run_tool(name: str, *arguments: str) -> str:
    """Standard output of a tool inside Triton's wheel (cuobjdump, nvdisasm)."""
    from triton import knobs

    command = [getattr(knobs.nvidia, name).path, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def problem(needs: Compiled, target: str, spills: bool = True) -> str:
    """Why a kernel with these needs does not fit ``target``, or "". ``spills``: whether spills count."""
    if spills and needs.spills:
        unit = "registers" if target.startswith("gfx") else "bytes"
        return f"spills {needs.spills} {unit}, {needs.stack} bytes of stack at {needs.registers} registers"
    if needs.shared > SHARED[target]:
        return f"{needs.shared / KIB:.1f} KiB of shared memory, the device has {SHARED[target] / KIB:.0f}"
    if needs.tensor_memory > TENSOR_MEMORY:
        return f"{needs.tensor_memory} columns of tensor memory, the device has {TENSOR_MEMORY}"
    return ""


def opcodes(launch: Launch, target: str) -> Counter[str]:
    """Count of each SASS opcode in a kernel, by its first part (HGMMA, LDL, LDS, ...)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as code:
        code.write(build(launch, target, aligned=True).asm["cubin"])
        code.flush()
        text = run_tool("nvdisasm", "-c", code.name)
    return Counter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", text, re.MULTILINE))
