"""What `edgeopt bench` costs: wall time by default and with --quick, for some numbers of candidates.

    python tests/benchmarks/bench_cost.py [sample_models/fashion_mnist/model.onnx] [--counts 1,10]

The candidates are the same file each time, so that what is counted is the method and not the models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="sample_models/fashion_mnist/model.onnx")
    parser.add_argument("--counts", default="1,10")
    options = parser.parse_args()
    print(f"{'candidates':>10}  {'mode':8}  {'seconds':>7}  rounds")
    for count in map(int, options.counts.split(",")):
        for mode, flags in (("default", []), ("quick", ["--quick"])):
            command = [sys.executable, "-m", "edgeopt", "bench", *[options.model] * count, *flags, "--json"]
            started = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds = time.perf_counter() - started
            rows = json.loads(done.stdout)["measurements"]
            rounds = sorted({row["rounds_measured"] for row in rows})
            told = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
            print(f"{count:10}  {mode:8}  {seconds:7.1f}  {told}", flush=True)


if __name__ == "__main__":
    main()
