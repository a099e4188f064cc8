"""What it costs to start: CPU seconds of `edgeopt --help` against `python -c "import typer"`, and the modules loaded.

    python tests/benchmarks/startup.py [--rounds 15] [--verb doctor] [--json]

The two alternate, so that a busy machine slows both; CPU time (user and system, of the whole process) is compared, not
the clock; the ratio is the median of the ratios of the rounds. The least possible is 1: typer builds the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass

BASELINE = (sys.executable, "-c", "import typer")
HEAVY = (
    "numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "tensorflow", "litert_torch", "ai_edge_litert",
    "pydantic", "yaml", "rich",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """Medians over the rounds, in CPU seconds; `ratio_low` to `ratio_high` is the range of the rounds' ratios."""

    command: str
    rounds: int
    cpu_s: float
    baseline_cpu_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    modules: int
    heavy_modules: tuple[str, ...]
    own_modules: tuple[str, ...]


def cpu_seconds(command: tuple[str, ...]) -> float:
    """User and system time of one run of a command, its output thrown away. Raises where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {message.decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime


def imported(command: tuple[str, ...]) -> list[str]:
    """The modules that a python command imports, in order, from the interpreter's own `-X importtime`."""
    python, *rest = command
    ended = subprocess.run([python, "-X", "importtime", *rest], capture_output=True, text=True, check=True)
    lines = (line for line in ended.stderr.splitlines() if line.startswith("import time:"))
    names = [line.rpartition("|")[2].strip() for line in lines]
    return [name for name in names if name != "imported package"]


def compare(command: tuple[str, ...], rounds: int) -> Result:
    """Run both commands `rounds` times in turn, then look at what the first one loads."""
    cpu_seconds(command), cpu_seconds(BASELINE)  # writes the .pyc files, fills the disk cache
    pairs = [(cpu_seconds(command), cpu_seconds(BASELINE)) for _ in range(rounds)]
    ratios = [mine / baseline for mine, baseline in pairs]
    modules = imported(command)
    return Result(
        command=" ".join(["edgeopt", *command[3:]]),
        rounds=rounds,
        cpu_s=statistics.median(mine for mine, _ in pairs),
        baseline_cpu_s=statistics.median(baseline for _, baseline in pairs),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        modules=len(modules),
        heavy_modules=tuple(sorted(set(HEAVY) & set(modules))),
        own_modules=tuple(sorted(name for name in modules if name.partition(".")[0] == "edgeopt")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--verb", action="append", default=[], help="also `edgeopt VERB --help`; may be repeated")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    edgeopt = (sys.executable, "-m", "edgeopt")
    commands = [(*edgeopt, "--help"), *((*edgeopt, *verb.split(), "--help") for verb in options.verb)]
    results = [compare(command, options.rounds) for command in commands]
    if options.json:
        document = {"schema": 1, "baseline": "python -c 'import typer'", "results": [asdict(one) for one in results]}
        print(json.dumps(document, indent=1))
        return
    for one in results:
        print(f"{one.command}: {one.ratio:.2f} times the CPU time of `import typer`")
        print(f"  over {one.rounds} rounds from {one.ratio_low:.2f} to {one.ratio_high:.2f}")
        print(f"  {1000 * one.cpu_s:.0f} ms against {1000 * one.baseline_cpu_s:.0f} ms of CPU time")
        heavy = ", ".join(one.heavy_modules) or "none"
        print(f"  {one.modules} modules, {len(one.own_modules)} of them edgeopt's; heavy ones: {heavy}")


if __name__ == "__main__":
    main()
