"""The instruction sets that decide how INT8 arithmetic is done, read off the machine.

On x86 without VNNI, products of 8-bit numbers are summed in 16 bits and saturate unless weights keep to 7 bits. Names
are those of Linux's /proc/cpuinfo ("avx512_vnni", "asimddp"). This module knows nothing of models.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Dict, Iterable, Tuple

from edgeopt.target import Target

X86 = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni_int8",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
ARM = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2")

_VNNI = frozenset({"avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8"})
_AVX512_VNNI = frozenset({"avx2", "avx512f", "avx512_vnni"})
_MAX_CPU_ISA: Dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx2", "avx_vnni"}),
    "AVX2_VNNI_2": frozenset({"avx2", "avx_vnni", "avx_vnni_int8"}),
    "AVX512_CORE": frozenset({"avx2", "avx512f"}),
    "AVX512_CORE_VNNI": _AVX512_VNNI,
    "AVX512_CORE_BF16": _AVX512_VNNI | {"avx512_bf16"},
    "AVX512_CORE_FP16": _AVX512_VNNI | {"avx512_bf16", "avx512_fp16", "avx_vnni"},
}


def instruction_sets(cpuinfo: Path = Path("/proc/cpuinfo")) -> Tuple[str, ...]:
    """Those of `X86` and `ARM` that this machine has, empty where it cannot be known.

    The environment variable ONEDNN_MAX_CPU_ISA, which makes oneDNN (OpenVINO) behave as a weaker x86, is honoured. Its
    levels: https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html (those with AMX limit nothing).
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return ()
    flags = set()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
            break
    ceiling = _MAX_CPU_ISA.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper())
    if ceiling is not None:
        flags &= ceiling
    return tuple(name for name in (*X86, *ARM) if name in flags)


def of_target(target: Target) -> Tuple[str, ...]:
    """What the target says of itself; where it says nothing and is this machine, what this machine has."""
    if target.isa:
        return target.isa
    return instruction_sets() if target.is_local else ()


def is_arm(target: Target) -> bool:
    """Whether the target is a 64-bit ARM, by its own word or, where it is this machine, by the machine's."""
    arch = target.arch or (platform.machine() if target.is_local else "")
    return arch.lower() in ("aarch64", "arm64")


def has_vnni(isa: Iterable[str]) -> bool:
    """Whether x86 code sums 8-bit products in 32 bits, so that 8-bit weights cannot saturate."""
    return not _VNNI.isdisjoint(isa)
