"""Accuracy against latency: the sample with fewer channels, trained after the original, and on labels alone.

    python tests/benchmarks/curve.py [RUN]

Runs `edgeopt convert tests/benchmarks/curve.yaml`, or reads a run of it: 30, 50, 62 and 75 % of the channels, 3 epochs
on 9,000 images with alpha 0.7 (mostly the teacher) and 0 (labels alone), INT8 in OpenVINO, three seeds each. Prints
means over the seeds, with the lowest and the highest. All candidates are measured in one session.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

RECIPE = Path(__file__).with_suffix(".yaml")
PRUNED = re.compile(r"prune([\d.]+)")


def converted() -> dict[str, object]:
    """The document of a run of the recipe."""
    command = [sys.executable, "-m", "edgeopt", "convert", str(RECIPE), "--json"]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def spread(values: list[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    run = parser.parse_args().run
    found = json.loads((run / "choice.json").read_text()) if run else converted()
    points: dict[tuple[float, bool], list[tuple[float, float, float]]] = defaultdict(list)
    for candidate in found["candidates"]:
        pruned = PRUNED.search(candidate["id"])
        if pruned and candidate["status"] not in ("failed", "skipped") and candidate["speedup"]:
            point = (candidate["quality"]["value"] * 100, candidate["latency_ns"]["p50"]["value"] / 1e3)
            taught = "alpha-0" not in candidate["steps"]["distill"]
            points[float(pruned[1]), taught].append((*point, candidate["speedup"]["value"]))
    print(f"{'channels':>8}  {'trained':18} {'top-1 %':24} {'p50 us':22} speed-up")
    for (fraction, taught), values in sorted(points.items()):
        accuracies, latencies, speedups = ([value[i] for value in values] for i in range(3))
        print(
            f"{fraction:6g} %  {'after the teacher' if taught else 'on labels':18}{spread(accuracies, '.2f'):24} "
            f"{spread(latencies, '.0f'):22} {spread(speedups, '.1f')}x"
        )


if __name__ == "__main__":
    main()
