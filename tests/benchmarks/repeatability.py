"""Whether the same comparison comes out again: a recipe's candidates measured several times, one core kept busy.

    python tests/benchmarks/repeatability.py [recipes/fashion-mnist.yaml] [--runs 5] [--idle]

Each run is a whole `edgeopt convert --remeasure`, with the steps from the cache. Another process computes without end
meanwhile, free to move between the cores (--idle leaves it out). The spread of a number is its largest value over its
smallest, less one. A speed-up counts as told only where its verdict was faster, slower or tie, and its interval narrow;
one that is not is shown with "~" in reports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

AIM = 0.05
LOAD = "while True: pass"


@contextmanager
def loaded(*, idle: bool) -> Iterator[None]:
    if idle:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", LOAD])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(recipe: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgeopt", "convert", recipe, "--remeasure", "-o", str(out), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def spread(values: Sequence[float]) -> str:
    return f"{max(values) / min(values) - 1:6.1%}" if values else "     -"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/fashion-mnist.yaml")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured(options.recipe, Path(folder) / "first")  # builds what is not built yet
        with loaded(idle=options.idle):
            runs = [measured(options.recipe, Path(folder) / str(number)) for number in range(options.runs)]
    busy = "nothing else of ours runs" if options.idle else "another process loads one core"
    print(f"{options.runs} runs of {options.recipe} on {os.cpu_count()} cores, {busy}")
    print(f"{'':42} {'p50':>6}  {'speed-up':>8}  verdicts")
    worst = 0.0
    for name in [c["id"] for c in runs[0]["candidates"] if c.get("latency_ns")]:
        rows = [next(c for c in run["candidates"] if c["id"] == name) for run in runs]
        p50s = [row["latency_ns"]["p50"]["value"] for row in rows if row["latency_ns"]]
        told = [row["speedup"] for row in rows if row["speedup"]]
        speedups = [one["value"] for one in told if one["verdict"] != "inconclusive" and one["precise"]]
        verdicts = Counter(one["verdict"] + ("" if one["precise"] else ", not precise") for one in told)
        listed = "; ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        print(f"{name:42} {spread(p50s)}  {spread(speedups):>8}  {listed or 'baseline'}")
        worst = max([worst, max(speedups) / min(speedups) - 1] if speedups else [worst])
    winners = Counter(run["winner"] for run in runs)
    listed = ", ".join(f"{name} {count} of {options.runs}" for name, count in winners.most_common())
    ties = {name for run in runs for name in run["ties"]}
    print(f"winner: {listed}" + (f"; in a tie: {', '.join(sorted(ties))}" if ties else ""))
    print(f"largest spread of a speed-up that was told: {worst:.1%} (the aim is {AIM:.0%})")


if __name__ == "__main__":
    main()
