"""A run's winner beside what users run today: onnxruntime with its default settings, and torch eager, fp32.

    python tests/benchmarks/winner.py runs/fashion-mnist-1 [--threads 1] [--rounds 24]

All take turns in one session, so that a busy machine slows all; speed-ups are medians of the rounds' ratios with a 95 %
interval, against onnxruntime with its defaults.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from edgeopt import bundle, recipe, store
from edgeopt.measuring import machine, session
from edgeopt.pipeline import built, find_data, find_import, prepared
from edgeopt.plan import make

PEERS = Path(__file__).parent / "peers"


def contestants(run: Path, threads: int) -> tuple[list[session.Candidate], Path]:
    """The winner's bundle and the peers, and the folder of the validation samples."""
    told = json.loads((run / "run.json").read_text())
    found = next(Path("recipes").glob(f"{told['recipe']['name']}.yaml"))
    read = recipe.read(found)
    made, cache = make(read), store.Store(store.default_root())
    data = {role: prepared(find_data(source, read, cache)) for role, source in made.data.items()}
    source = built(find_import(read, data["calibration"].digest, cache))
    best = bundle.read_bundle(run / "best")
    factory, _, function = read.model.rpartition(":")
    environment = {"PYTHONPATH": str(PEERS)}
    common = {"inputs": source.artifact.inputs, "threads": threads, "env": environment}
    weights = Path(read.weights).name if read.weights else ""
    return [
        session.Candidate(
            "onnxruntime, defaults", "", "onnxruntime-default", source.folder, "model.onnx", **common
        ),
        session.Candidate("onnxruntime", "", "onnxruntime", source.folder, "model.onnx", **common),
        session.Candidate(
            "torch eager", "", "torch-eager", Path(factory).parent, Path(factory).name,
            runtime={"function": function, "weights": weights}, **common,
        ),
        session.Candidate(
            f"winner ({told['winner']})", best.artifact.digest, best.backend, best.folder, best.artifact.main,
            best.artifact.inputs, best.artifact.runtime, threads,
        ),
    ], data["validation"].folder  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=24)
    options = parser.parse_args()
    candidates, samples = contestants(options.run, options.threads)
    settings = replace(session.SessionOptions(samples), rounds=options.rounds)
    with tempfile.TemporaryDirectory() as logs:
        result = session.run_session(
            candidates, settings, Path(logs), machine=machine.fingerprint(), observe=machine.state
        )
    for name, outcome in result.outcomes.items():
        if outcome.error:
            print(f"{name:40} {outcome.error.message}")
            continue
        p50 = outcome.measurement.latency.p50.value / 1e6
        told = "1x"
        if outcome.speedup:
            ratio = outcome.speedup.speedup
            told = f"{ratio.value:.2f}x ({ratio.low:.2f} to {ratio.high:.2f}), {outcome.speedup.verdict}"
        print(f"{name:40} p50 {p50:7.3f} ms   {told}")


if __name__ == "__main__":
    main()
