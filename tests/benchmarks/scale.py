"""What many candidates, many stored steps and a large model cost.

    python tests/benchmarks/scale.py candidates [--counts 20 50 100 200]
    python tests/benchmarks/scale.py store [--counts 1000 10000]
    python tests/benchmarks/scale.py model [--gigabytes 2]

`candidates` converts a tiny model in so many ways, and tells the command's own CPU time and peak memory (its workers
not counted), what the report weighs, and how long Ctrl-C takes in the middle. `store` fills a store, and times listing,
finding and collecting. `model` converts an ONNX model of so many GB with external data, and tells the peak memory of
every worker as a multiple of the model.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from command import WITH_PEAK
from linear import save_data, save_onnx

EXAMPLE = Path(__file__).parents[1] / "plugin" / "example"  # brings the stage `round`
CANDIDATES = """
model: model.onnx
data: {{validation: data.npz}}
preprocess: {{mean: 128, std: 64}}
steps:
  - round: {{bits: {bits}}}
  - quantize: [none, int8-weights, int4-weights, dynamic, {{dynamic: {{bits: 4}}}}]
  - compile: [onnxruntime, openvino]
measure: {{rounds: 3, block: 5 ms}}
"""
LARGE = """
model: model.onnx
data: {validation: data.npz}
metric: agreement
steps:
  - compile: onnxruntime
measure: {rounds: 3, block: 1 ms}
"""
WIDTH = 8192  # 256 MiB a layer


def convert(folder: Path, output: str) -> tuple[dict[str, object], float, float, float]:
    """One run: its document, wall seconds, CPU seconds of the command alone, and its peak memory in MB."""
    peak, cpu = folder / "peak", folder / "cpu"
    program = WITH_PEAK.replace(
        "sys.exit(code)", f"import time; open({str(cpu)!r}, 'w').write(str(time.process_time())); sys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, str(peak), "convert", "recipe.yaml", "--output", output, "--json"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        check=True,
    )
    wall = time.monotonic() - started
    return json.loads(done.stdout), wall, float(cpu.read_text()), int(peak.read_text()) * 1024 / 1e6


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "EDGEOPT_CACHE": str(folder / "cache"), "PYTHONPATH": str(EXAMPLE)}


def candidates(counts: list[int]) -> None:
    print(f"{'candidates':>10} {'wall':>8} {'CPU of the command':>19} {'each':>8} {'peak':>8} {'report':>9} Ctrl-C")
    with tempfile.TemporaryDirectory(prefix="edgeopt-scale-") as name:
        folder = Path(name)
        save_onnx(folder / "model.onnx")
        save_data(folder / "data.npz")
        for count in counts:
            recipe = CANDIDATES.format(bits=list(range(1, max(1, count // 10) + 1)))
            (folder / "recipe.yaml").write_text(recipe)
            found, wall, cpu, peak = convert(folder, f"run-{count}")
            report = (folder / f"run-{count}" / "report.html").stat().st_size / 1e6
            number = len(found["candidates"])
            print(
                f"{number:10} {wall:7.1f}s {cpu:18.2f}s {cpu / number * 1e3:6.1f}ms {peak:5.0f} MB {report:6.2f} MB "
                f"{interrupted(folder):.2f}s",
                flush=True,
            )


def interrupted(folder: Path) -> float:
    """Seconds from Ctrl-C in the middle of measuring to the end of the command."""
    command = [sys.executable, "-m", "edgeopt", "convert", "recipe.yaml", "--remeasure", "--output", "never"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(4)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    code = process.wait()
    if code != 130:
        raise SystemExit(f"it ended with {code} before it was interrupted")
    return time.monotonic() - started


def store(counts: list[int]) -> None:
    from edgeopt.store import Made, Store

    print(f"{'entries':>8} {'to file one':>12} {'to find one':>12} {'cache list':>11} {'cache gc':>9}")
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="edgeopt-scale-") as name:
            root = Path(name)
            filled = Store(root)

            def make(out: Path) -> Made:
                (out / "model.onnx").write_bytes(os.urandom(1024))
                return Made({})

            inputs = [{"stage": "data", "choice": "", "number": number} for number in range(count)]
            started = time.monotonic()
            for one in inputs:
                filled.build(one, make)
            filed = time.monotonic() - started
            looked = inputs[:: max(1, count // 200)]
            started = time.monotonic()
            for one in looked:
                assert filled.find(one) is not None
            found = time.monotonic() - started
            seconds = [timed(root, "cache", "list", "--json"), timed(root, "cache", "gc", "--limit", "1 MB")]
            print(
                f"{count:8} {filed / count * 1e3:10.2f}ms {found / len(looked) * 1e3:10.2f}ms "
                f"{seconds[0]:10.2f}s {seconds[1]:8.2f}s",
                flush=True,
            )


def timed(cache: Path, *arguments: str) -> float:
    started = time.monotonic()
    environment = {**os.environ, "EDGEOPT_CACHE": str(cache)}
    command = [sys.executable, "-m", "edgeopt", *arguments]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def model(gigabytes: float) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeopt-scale-") as name:
        folder = Path(name)
        size = write_large(folder / "model.onnx", max(1, round(gigabytes * 1e9 / (WIDTH * WIDTH * 4))))
        np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32))
        (folder / "recipe.yaml").write_text(LARGE)
        found, wall, _, peak = convert(folder, "run")
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        entries = [json.loads(path.read_text()) for path in (folder / "cache" / "entries").glob("*/entry.json")]
        print(f"model of {size / 1e9:.2f} GB: {wall:.0f} s, the command itself {peak:.0f} MB")
        for entry in entries:
            memory = entry["meta"].get("peak_memory_bytes")
            if memory:
                step = f"{entry['inputs']['stage']} {entry['inputs']['choice']}"
                print(f"  {step:24} {memory / 1e9:5.2f} GB, {memory / size:.2f} of the model, {entry['seconds']:.0f} s")
        print(f"  {'any process':24} {largest / 1e9:5.2f} GB, {largest / size:.2f} of the model")
        print(f"  winner: {found['winner']}")


def write_large(path: Path, layers: int) -> int:
    """Matrix products of WIDTH x WIDTH, the weights in a file beside the model, written layer by layer: its bytes."""
    import onnx
    from onnx import TensorProto, helper

    draw, each = np.random.default_rng(0), WIDTH * WIDTH * 4
    nodes, weights = [], []
    with open(path.with_suffix(".data"), "wb") as file:
        for layer in range(layers):
            file.write((draw.standard_normal((WIDTH, WIDTH), dtype=np.float32) / WIDTH**0.5).tobytes())
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            place = {"location": path.with_suffix(".data").name, "offset": str(layer * each), "length": str(each)}
            for key, value in place.items():
                weight.external_data.add(key=key, value=value)
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"h{layer}" if layer else "x", weight.name], [f"h{layer + 1}"]))
    nodes[-1].output[0] = "y"
    shape = ["batch", WIDTH]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path.stat().st_size + path.with_suffix(".data").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["candidates", "store", "model"])
    parser.add_argument("--counts", type=int, nargs="+")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    options = parser.parse_args()
    if options.what == "candidates":
        candidates(options.counts or [20, 50, 100, 200])
    elif options.what == "store":
        store(options.counts or [1000, 10_000])
    else:
        model(options.gigabytes)


if __name__ == "__main__":
    main()
