"""The Edge TPU compiler `edgetpu_compiler`: called where it is installed, and its log read.

It is a program of Google's for x86-64 Linux, in no package registry: coral.ai names the Debian repository that has it.
https://coral.ai/docs/edgetpu/compiler/
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.edgetpu.compiled import CHIP
from edgeopt.errors import MissingDependency, StageError
from edgeopt.placement import CPU, Placed

PROGRAM = "edgetpu_compiler"
INSTALL = "apt install edgetpu-compiler, from the Debian repository that coral.ai/docs/edgetpu/compiler names"
MAPPED = "Mapped to Edge TPU"
_KIBI = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZES = {
    "on_chip_bytes": "On-chip memory used for caching model parameters",
    "on_chip_free_bytes": "On-chip memory remaining for caching model parameters",
    "off_chip_bytes": "Off-chip memory used for streaming uncached model parameters",
}
_COUNTS = {"subgraphs": "Number of Edge TPU subgraphs", "operators": "Total number of operations"}
_ROW = re.compile(r"^([A-Za-z][\w.-]{0,99})[ \t]+(\d{1,9})[ \t]+(\S.*?)[ \t\r]*$", re.MULTILINE)
_FAILURE = re.compile(r"error|invalid|fail|abort|not quantized|unsupported", re.IGNORECASE)


@dataclass(frozen=True)
class Log:
    """What the compiler told. Sizes are bytes, rounded as the compiler rounds them; None is what it did not tell."""

    version: str | None
    milliseconds: int | None
    on_chip_bytes: int | None
    on_chip_free_bytes: int | None
    off_chip_bytes: int | None
    subgraphs: int | None
    operators: int | None
    placed: tuple[Placed, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "basis": "compiled",
            "compiler": self.version,
            "compile_ms": self.milliseconds,
            "on_chip_bytes": self.on_chip_bytes,
            "on_chip_free_bytes": self.on_chip_free_bytes,
            "off_chip_bytes": self.off_chip_bytes,
            "subgraphs": self.subgraphs,
            "operators": self.operators,
            "mapped": [{"operator": p.operator, "count": p.count} for p in self.placed if p.where != CPU],
            "kept_on_cpu": [
                {"operator": p.operator, "count": p.count, "reason": p.reason} for p in self.placed if p.where == CPU
            ],
        }


def find() -> str:
    """The program's path. Raises MissingDependency."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise MissingDependency(
            f"unavailable: {PROGRAM}, without which nothing runs on an Edge TPU, is not on the search path",
            remedy=f"Install it on x86-64 Linux: {INSTALL}. It is in no package registry.",
        )
    return found


def compile(model: Path, out: Path, *, least_runtime: int | None, seconds: float) -> tuple[Path, Log]:
    """Compile the file `model` into the folder `out`: the compiled file, and what the compiler told.

    `least_runtime` is the oldest version of the Edge TPU runtime that it has to work with, None for the compiler's own
    choice. Raises MissingDependency, and StageError with the compiler's own words.
    """
    more = [] if least_runtime is None else ["-m", str(least_runtime)]
    command = [find(), "-s", *more, "-o", str(out), str(model)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False, cwd=out
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"{PROGRAM} ran past its limit of {seconds:g} s") from error
    except OSError as error:
        raise StageError(f"{PROGRAM} cannot be started: {error.strerror}") from error
    told, made = f"{ended.stdout}\n{ended.stderr}", out / f"{model.stem}_edgetpu.tflite"
    if ended.returncode != 0 or not made.is_file():
        raise StageError(f"{PROGRAM} ended with exit code {ended.returncode}: {failure(told)}")
    return made, parse(told)


def parse(text: str) -> Log:
    """What the compiler printed, with `-s`."""
    sizes = {name: _size(text, label) for name, label in _SIZES.items()}
    counts = {name: _number(text, rf"{label}: (\d{{1,18}})\b") for name, label in _COUNTS.items()}
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    table = re.search(r"^Operator\s+Count\s+Status\s*$", text, re.MULTILINE)
    rows = _ROW.findall(text, table.end()) if table else []
    return Log(
        version=version.group(1) if version else None,
        milliseconds=_number(text, r"Model compiled successfully in (\d{1,18}) ms"),
        placed=tuple(_placed(*row) for row in rows),
        **sizes,
        **counts,
    )


def _placed(operator: str, count: str, status: str) -> Placed:
    """A row of the compiler's table: what it says of operators that it did not map is why."""
    if status == MAPPED:
        return Placed(operator, CHIP, "int8", count=int(count))
    return Placed(operator, CPU, reason=status, count=int(count))


def failure(text: str) -> str:
    """The lines of a log that say why there is no model; its last line where none does."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    said = [line for line in lines if _FAILURE.search(line)]
    return "; ".join((said or lines[-1:])[:3]) or "it said nothing"


def _number(text: str, pattern: str) -> int | None:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None


def _size(text: str, label: str) -> int | None:
    found = re.search(rf"{label}: (\d{{1,15}}(?:\.\d{{1,15}})?)([KMG]?i?B)", text)
    return round(float(found.group(1)) * _KIBI[found.group(2)]) if found and found.group(2) in _KIBI else None
