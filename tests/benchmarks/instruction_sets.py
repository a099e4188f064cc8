"""INT8 on weaker x86 processors, emulated: accuracy and speed in OpenVINO, of the form made for each.

    edgeopt convert recipes/efficientnet-lite0.yaml && \\
        python tests/benchmarks/instruction_sets.py recipes/efficientnet-lite0.yaml

ONEDNN_MAX_CPU_ISA makes OpenVINO compute as a processor of that instruction set does. Each is measured with its own
fp32, all in one session, one thread. onnxruntime and LiteRT look at the processor themselves: not to be had for them.
Reads model and samples from the cache that the command filled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from quantizers import artifact, job, recalled, scores

from edgeopt.artifact import TensorSpec
from edgeopt.measuring import machine, quality, session
from edgeopt.samples import Samples
from edgeopt.stages import compile, quantize

SETS = {  # what oneDNN calls them, and what the target of such a processor says
    "AVX2": ("avx2",),
    "AVX2_VNNI": ("avx2", "avx_vnni"),
    "AVX512_CORE_VNNI": ("avx2", "avx512f", "avx512_vnni"),
    "AVX512_CORE_AMX": ("avx2", "avx512f", "avx512_vnni", "amx_int8"),
}


def outputs(found: session.Candidate, samples: Path, out: Path) -> Any:
    """A candidate's scores, taken in a process with its environment."""
    told = {"folder": str(found.folder), "main": found.main, "inputs": [spec.to_json() for spec in found.inputs]}
    command = [sys.executable, __file__, "--scores", json.dumps(told), str(samples), str(out)]
    subprocess.run(command, env={**os.environ, **found.env}, check=True)
    return np.load(out, allow_pickle=False)


def save_scores(told: str, samples: str, out: str) -> None:
    known = json.loads(told)
    inputs = tuple(TensorSpec.from_json(spec) for spec in known["inputs"])
    found = session.Candidate("", "", "openvino", Path(known["folder"]), known["main"], inputs)
    np.save(out, scores(found, Samples(Path(samples))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    source, data = recalled(Path(options.recipe))
    calibration, validation = data["calibration"].folder, data["validation"].folder
    labels = Samples(validation).labels()
    with tempfile.TemporaryDirectory() as name:
        work, candidates = Path(name), []
        parent = (source.artifact, source.folder)
        for level, instructions in SETS.items():
            for precision in ("fp32", "int8"):
                made, out = work / f"{level}-canonical", work / f"{level}-{precision}"
                asked, canonical = job(quantize, "int8", parent, made, source.folder, calibration), parent
                target = replace(asked.target, isa=instructions)
                if precision == "int8":
                    made.mkdir()
                    with contextlib.redirect_stdout(sys.stderr):  # NNCF's progress
                        canonical = artifact(quantize.run(replace(asked, target=target)), made), made
                out.mkdir()
                produced = compile.run(
                    replace(job(compile, "openvino", canonical, out, source.folder, calibration), target=target)
                )
                candidates.append(
                    session.Candidate(
                        f"{level} {precision}", "", "openvino", out, produced.main, produced.inputs,
                        env={"ONEDNN_MAX_CPU_ISA": level},
                    )
                )  # fmt: skip
        (work / "logs").mkdir()
        settings = replace(session.SessionOptions(validation), rounds=options.rounds)
        result = session.run_session(
            candidates, settings, work / "logs", machine=machine.fingerprint(), observe=machine.state
        )
        what = "accuracy" if labels is not None else "agreement"
        print(f"{'':18} {what:>9} {'SNR dB':>7} {'fp32 us':>9} {'int8 us':>9}")
        for plain, small in zip(candidates[::2], candidates[1::2], strict=True):
            wanted, found = (outputs(one, validation, work / f"{one.id}.npy") for one in (plain, small))
            right = wanted.argmax(1) if labels is None else labels
            decibels = quality.decibels(*quality.energies(wanted, found))
            fp32, int8 = (result.outcomes[one.id].measurement.latency.p50.value / 1e3 for one in (plain, small))
            print(
                f"{plain.id.partition(' ')[0]:18} {(found.argmax(1) == right).mean() * 100:8.2f}% {decibels:7.1f} "
                f"{fp32:9.0f} {int8:9.0f}  {fp32 / int8:.2f}x"
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--scores"]:
        save_scores(*sys.argv[2:])
    else:
        main()
