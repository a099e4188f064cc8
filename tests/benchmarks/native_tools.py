"""`edgeopt bench` beside the runtimes' own C and C++ APIs and tools: the same file, the same sample, taking turns.

    python tests/benchmarks/native_tools.py MODEL... [--rounds 24] [--onnxruntime-include FOLDER]

MODEL is a bundle or an OpenVINO .xml, an .onnx or a .tflite file of one input. The programs in `native/` are compiled
with g++ against the very libraries inside the installed wheels, whose Python packages edgeopt calls. OpenVINO's wheel
brings its headers; onnxruntime's does not: `--onnxruntime-include` is the folder with onnxruntime_c_api.h of a release.
LiteRT's wheel brings neither headers nor a native tool, but a Python tool: that one runs by itself, in processes that
alternate with edgeopt's blocks, as OpenVINO's benchmark_app does.

A ratio is the median of the rounds' ratios of p50, edgeopt over the other, with a 95 % interval; clean calls alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgeopt import backends
from edgeopt.kit import subjects
from edgeopt.measurement import Block, latency, ratio
from edgeopt.samples import Preprocess, write_samples
from edgeopt.worker import Worker

HERE = Path(__file__).parent / "native"
BLOCK_NS, CALLS = 100_000_000, 5
ROUNDS_OF_A_TOOL, SECONDS_OF_A_TOOL, RUNS_OF_A_TOOL, BLOCKS_BESIDE_A_TOOL = 6, 2, 300, 20


def package(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin).parent


def compiled(backend: str, include: Path | None, folder: Path) -> Path | None:
    """The program of a backend, linked with the library in its wheel; None where its headers are not at hand."""
    if backend == "openvino":
        root = package("openvino")
        include, library = root / "include", next((root / "libs").glob("libopenvino.so.*"))
    elif backend == "onnxruntime" and include:
        library = folder / "libonnxruntime.so.1"  # its own name, which the wheel's file does not have
        if not library.exists():
            library.symlink_to(next((package("onnxruntime") / "capi").glob("libonnxruntime.so.*")))
    else:
        return None
    program = folder / backend
    if not program.exists():
        linked = [f"-I{include}", str(library), f"-Wl,-rpath,{library.parent}"]
        subprocess.run(["g++", "-O2", "-std=c++17", f"{HERE / backend}.cpp", *linked, "-o", str(program)], check=True)
    return program


class Native:
    """A compiled program that takes turns."""

    def __init__(self, program: Path, main: Path, sample: Path, precision: str, output: Path) -> None:
        command = [str(program), str(main), str(sample), precision, "1", str(output)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def block(self) -> Block:
        self.process.stdin.write(f"{BLOCK_NS} {CALLS}\n")
        self.process.stdin.flush()
        return Block.from_json(json.loads(self.process.stdout.readline()))


class Edgeopt:
    """The process that `edgeopt bench` measures in."""

    def __init__(self, subject: subjects.Subject, inputs: Sequence[Any], samples: Path, log: Path) -> None:
        args = {
            "backend": subject.backend,
            "main": str(subject.main),
            "runtime": dict(subject.artifact.runtime),
            "threads": 1,
            "inputs": [spec.to_json() for spec in inputs],
            "samples": str(samples),
            "feeds": 1,
            "warm_up_ns": 2_000_000_000,
        }
        self.worker = Worker("edgeopt.measuring.candidate:run", args, log=log)
        self.ready = self.worker.receive(seconds=60)["ready"]

    def __enter__(self) -> Edgeopt:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.send({"do": "stop"})
        self.worker.result()
        self.worker.stop()

    def block(self) -> Block:
        self.worker.send({"do": "block", "ns": BLOCK_NS, "calls": CALLS})
        return Block.from_json(self.worker.receive(seconds=60)["block"])


def benchmark_app(subject: subjects.Subject, shape: str) -> float:
    """OpenVINO's own tool, in Python because the wheel has no other: its median in ns."""
    precision = subject.artifact.runtime.get("precision", "f32")
    code = "from openvino.tools.benchmark.main import main; main()"
    settings = ["-hint", "none", "-nstreams", "1", "-nthreads", "1", "-infer_precision", precision, "-api", "sync"]
    command = [sys.executable, "-c", code, "-m", str(subject.main), "-d", "CPU", "-t", str(SECONDS_OF_A_TOOL)]
    done = subprocess.run([*command, *settings, "-shape", shape], capture_output=True, text=True, check=True)
    value, unit = re.search(r"Median: +([\d.]+) (us|ms)", done.stdout).groups()
    return float(value) * {"us": 1e3, "ms": 1e6}[unit]


def benchmark_litert(subject: subjects.Subject, shape: str) -> float:
    """LiteRT's own tool, in Python: its median in ns, to 10 us."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        module = "ai_edge_litert.tools.benchmark_litert_model"
        settings = ["--num_threads=1", f"--num_runs={RUNS_OF_A_TOOL}", f"--result_json={told}"]
        command = [sys.executable, "-m", module, f"--model={subject.main}", *settings]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads(told.read_text())["latency"]["median_ms"] * 1e6


TOOLS: dict[str, tuple[str, Callable[[subjects.Subject, str], float]]] = {
    "openvino": ("benchmark_app (Python)", benchmark_app),
    "tflite": ("benchmark_litert_model (Python)", benchmark_litert),
}


def p50(blocks: Sequence[Block]) -> float:
    return latency(blocks).percentiles["p50"].value


def compare(subject: subjects.Subject, rounds: int, program: Path | None, folder: Path) -> None:
    session = backends.require(subject.backend).load(subject.main, subject.artifact.runtime, 1)
    (spec,) = session.inputs
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    value = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    wanted = next(iter(session.run({spec.name: value}).values()))
    del session
    samples = folder / "samples"
    samples.mkdir()
    write_samples(samples, {spec.name: value}, None, Preprocess())
    sample, output = folder / "sample.bin", folder / "output.bin"
    sample.write_bytes(value.tobytes())
    print(
        f"{subject.name}, {subject.backend} {backends.version(backends.find(subject.backend).DISTRIBUTION)}, 1 thread"
    )
    with ExitStack() as stack:
        ours = stack.enter_context(Edgeopt(subject, [spec], samples, folder / "log"))
        clock, call = ours.ready["clock_overhead_ns"], ours.ready["call_overhead_ns"]
        if program:
            precision = subject.artifact.runtime.get("precision", "f32")
            native = stack.enter_context(Native(program, subject.main, sample, precision, output))
            turns = {"edgeopt": ours, "native": native}
            found: dict[str, list[Block]] = {name: [] for name in turns}
            for number in range(-3, rounds):
                for name in sorted(turns, reverse=bool(number % 2)):
                    block = turns[name].block()
                    if number >= 0:
                        found[name].append(block)
            assert np.allclose(np.fromfile(output, wanted.dtype), wanted.ravel(), rtol=1e-3, atol=1e-4)
            by = ratio(found["edgeopt"], found["native"])
            pairs = zip(found["edgeopt"], found["native"], strict=True)
            added = median(
                median(a.clean_ns or a.latencies_ns) - median(b.clean_ns or b.latencies_ns) for a, b in pairs
            )
            loop = "C++ loop" if subject.backend == "openvino" else "C loop"
            print(f"  {loop:32} p50 {p50(found['native']) / 1e3:9.1f} us")
            print(
                f"  {'edgeopt bench':32} p50 {p50(found['edgeopt']) / 1e3:9.1f} us   {by.value:.3f}x "
                f"({by.low:.3f} to {by.high:.3f}, {by.basis} calls), {added / 1e3:+.1f} us"
            )
        else:
            print("  no native program: its headers are not in the wheel (see --help)")
        if subject.backend in TOOLS:
            name, tool = TOOLS[subject.backend]
            pairs = []
            for _ in range(ROUNDS_OF_A_TOOL):
                theirs = tool(subject, f"[{','.join(map(str, shape))}]")
                pairs.append((p50([ours.block() for _ in range(BLOCKS_BESIDE_A_TOOL)]), theirs))
            by = median(a / b for a, b in pairs)
            print(f"  {name:32} p50 {median(b for _, b in pairs) / 1e3:9.1f} us")
            print(f"  {'edgeopt bench':32} p50 {median(a for a, _ in pairs) / 1e3:9.1f} us   {by:.3f}x")
        told = "unknown" if call is None else f"{call / 1e3:.1f} us"
        print(f"  stated in the measurement: clock {clock} ns, a call {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--onnxruntime-include", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as programs:
        for subject in subjects.read(options.models, Preprocess()):
            program = compiled(subject.backend, options.onnxruntime_include, Path(programs))
            with tempfile.TemporaryDirectory() as folder:
                compare(subject, options.rounds, program, Path(folder))


if __name__ == "__main__":
    main()
