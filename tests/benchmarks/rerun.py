"""What a rerun with nothing changed costs: seconds to find every step, against the first run, and the command's memory.

    python tests/benchmarks/rerun.py [RECIPE] [--reruns 5] [--json]

The recipe is run once in an empty cache and then again and again. Told are the seconds of the build part (finding or
making every step and every quality) as the run itself counts them, the median over the reruns with their range, the
wall-clock time of the whole command, and the peak resident memory of the process that the user starts, its workers
not counted (proc(5), VmHWM). Without RECIPE it is a tiny ONNX model on two runtimes, in float and INT8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from command import WITH_PEAK, project


@dataclass(frozen=True)
class Run:
    """One run of the command. `build_s` is what it told itself, `wall_s` from start to end, `peak_mb` in 10^6 bytes."""

    build_s: float
    wall_s: float
    peak_mb: float
    steps_reused: int
    steps: int
    measurements_reused: bool


def run(recipe: Path, cache: Path, output: Path) -> Run:
    """Convert once. Raises SystemExit with what the command said where it fails otherwise than by a budget."""
    peak = output.with_suffix(".peak")
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", WITH_PEAK, str(peak), "convert", str(recipe), "--output", str(output), "--json"],
        env={**os.environ, "EDGEOPT_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    wall = time.monotonic() - started
    if ended.returncode not in (0, 3):
        raise SystemExit(f"the command ended with {ended.returncode}: {ended.stderr}")
    document = json.loads(ended.stdout)
    reused = document["reused"]
    return Run(
        build_s=document["seconds"]["build"],
        wall_s=wall,
        peak_mb=int(peak.read_text()) * 1024 / 1e6,
        steps_reused=reused["steps"],
        steps=reused["of"],
        measurements_reused=reused["measurements"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path)
    parser.add_argument("--reruns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeopt-rerun-") as name:
        folder = Path(name)
        recipe = (options.recipe or project(folder / "tiny") / "recipe.yaml").resolve()
        first = run(recipe, folder / "cache", folder / "first")
        reruns = [run(recipe, folder / "cache", folder / f"rerun-{number}") for number in range(options.reruns)]
    build = statistics.median(one.build_s for one in reruns)
    if options.json:
        document = {
            "schema": 1,
            "first": asdict(first),
            "reruns": [asdict(one) for one in reruns],
            "build_ratio": build / first.build_s,
        }
        print(json.dumps(document, indent=1))
        return
    low, high = min(one.build_s for one in reruns), max(one.build_s for one in reruns)
    wall = statistics.median(one.wall_s for one in reruns)
    peak = max(one.peak_mb for one in reruns)
    last = reruns[-1]
    measured = "were there too" if last.measurements_reused else "were taken again"
    print(f"build: {build:.3f} s, from {low:.3f} to {high:.3f} s over {len(reruns)} reruns")
    print(f"  {build / first.build_s:.4f} of the first run's {first.build_s:.1f} s")
    print(f"  {last.steps_reused} of {last.steps} steps were there, the measurements {measured}")
    print(f"whole command: {wall:.2f} s, first {first.wall_s:.1f} s")
    print(f"peak memory of the command itself: {peak:.0f} MB, first {first.peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
