"""INT8 by edgeopt beside NNCF, onnxruntime's quantizer and litert's, each with its own defaults, on every runtime.

    edgeopt convert recipes/fashion-mnist.yaml && python tests/benchmarks/quantizers.py recipes/fashion-mnist.yaml

The same calibration samples for all, each quantizer in a process of its own (seconds and peak memory are of that
process, imports included). For each runtime that takes the result: accuracy where there are labels, else agreement
with fp32; signal to noise of the outputs; p50 and speed-up against onnxruntime fp32, all in one session, one thread.
Reads model and samples from the cache that the command filled.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeopt import backends, catalog, devices, recipe, store
from edgeopt.artifact import Artifact, MadeBy, TensorSpec, list_files
from edgeopt.measuring import machine, quality, session
from edgeopt.pipeline import Built, Prepared, built, find_data, find_import, prepared
from edgeopt.plan import make
from edgeopt.samples import Samples, adapt, restore
from edgeopt.stages import Produced, StageJob, compile, quantize

RUNTIMES = ("openvino", "onnxruntime", "tflite")
BATCH = 50


def recalled(path: Path) -> tuple[Built, dict[str, Prepared]]:
    """A recipe's imported model and samples by role, from the cache that a run of it has filled."""
    read, cache = recipe.read(path), store.Store(store.default_root())
    data = {role: prepared(find_data(source, read, cache)) for role, source in make(read).data.items()}
    return built(find_import(read, data["calibration"].digest, cache)), data


def job(stage: Any, choice: str, parent: tuple[Artifact, Path], out: Path, source: Path, samples: Path) -> StageJob:
    target = catalog.target("host")
    return StageJob(
        choice=choice,
        options=stage.choices()[choice](),
        parent=parent[0],
        parent_folder=parent[1],
        lineage={"import": source, "quantize": parent[1]},
        samples={"calibration": samples},
        target=replace(target, isa=devices.find(target).isa()),
        out=out,
        progress=lambda fraction, text: None,
    )


def artifact(produced: Produced, folder: Path) -> Artifact:
    made_by = MadeBy("benchmark", 1, {}, {})
    return Artifact(
        produced.format, produced.main, list_files(folder), produced.inputs, produced.outputs, produced.precision,
        made_by, runtime=produced.runtime,
    )  # fmt: skip


def by_edgeopt(source: Artifact, folder: Path, samples: Path, out: Path) -> Iterator[str]:
    """The canonical form, calibrated once."""
    asked = job(quantize, "int8", (source, folder), out, folder, samples)
    (out / "artifact.json").write_text(json.dumps(artifact(quantize.run(asked), out).to_json()))
    yield from RUNTIMES


def by_nncf(source: Artifact, folder: Path, samples: Path, out: Path) -> Iterator[str]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf
    import onnx

    data = Samples(samples)
    feeds = nncf.Dataset([data.batch(i, i + 1) for i in range(len(data))])
    model = nncf.quantize(onnx.load(folder / source.main), feeds, subset_size=len(data))
    onnx.save(model, out / "model.onnx")
    yield from ("openvino", "onnxruntime")


def by_onnxruntime(source: Artifact, folder: Path, samples: Path, out: Path) -> Iterator[str]:
    from onnxruntime import quantization

    data = Samples(samples)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        feeds = (data.batch(i, i + 1) for i in range(len(data)))

        def get_next(self) -> Any:
            return next(self.feeds, None)

    prepared_model = out / "prepared.onnx"
    quantization.shape_inference.quant_pre_process(folder / source.main, prepared_model)
    quantization.quantize_static(prepared_model, out / "model.onnx", Reader(), per_channel=True)
    prepared_model.unlink()
    yield from ("openvino", "onnxruntime")


def by_litert(source: Artifact, folder: Path, samples: Path, out: Path) -> Iterator[str]:
    """ai-edge-quantizer's own recipe and calibration, on the float file that edgeopt converts. Float at both ends, as
    all others are."""
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer import recipe as recipes

    data = Samples(samples)
    asked = job(compile, "tflite", (source, folder), out, folder, samples)
    produced = compile.run(asked)
    made = quantizer.Quantizer(str(out / produced.main), recipes.static_wi8_ai8())
    for boundary in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        made.update_quantization_recipe(".*", boundary, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    feeds = [adapt(data.batch(i, i + 1), produced.inputs) for i in range(len(data))]
    calibrated = made.calibrate({"serving_default": feeds})
    (out / produced.main).write_bytes(made.quantize(calibrated).quantized_model)
    yield "tflite"


WAYS: Mapping[str, Callable[[Artifact, Path, Path, Path], Iterator[str]]] = {
    "edgeopt": by_edgeopt,
    "NNCF": by_nncf,
    "onnxruntime": by_onnxruntime,
    "litert": by_litert,
}


def make_one(way: str, folder: Path, described: str, samples: Path, out: Path) -> None:
    """In a process of its own: quantize, and print what it took."""
    source = Artifact.from_json(json.loads(described))
    started = time.perf_counter()
    runtimes = list(WAYS[way](source, folder, samples, out))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory, as it was at the fork
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024
    print(json.dumps({"runtimes": runtimes, "seconds": time.perf_counter() - started, "peak": peak}))


def candidate(way: str, runtime: str, made: Path, source: Artifact, folder: Path, samples: Path, out: Path) -> Any:
    """What a runtime loads: edgeopt's own lowering, a peer's file as it is (as IR for OpenVINO)."""
    out.mkdir()
    if way == "edgeopt":
        parent = Artifact.from_json(json.loads((made / "artifact.json").read_text()))
        produced = compile.run(job(compile, runtime, (parent, made), out, folder, samples))
        return session.Candidate(f"{way} / {runtime}", "", runtime, out, produced.main, produced.inputs, {}, 1)
    if runtime == "openvino":
        import openvino

        openvino.save_model(openvino.convert_model(made / "model.onnx"), out / "model.xml", compress_to_fp16=False)
        return session.Candidate(f"{way} / {runtime}", "", runtime, out, "model.xml", source.inputs, {}, 1)
    main = "model.tflite" if runtime == "tflite" else "model.onnx"
    inputs = backends.find(runtime).load(made / main, {}, 1).inputs if runtime == "tflite" else source.inputs
    inputs = tuple(TensorSpec(s.name, s.shape, s.dtype, "NHWC" if len(s.shape) == 4 else None) for s in inputs)
    inputs = inputs if runtime == "tflite" else source.inputs
    return session.Candidate(f"{way} / {runtime}", "", runtime, made, main, inputs, {}, 1)


def scores(found: Any, samples: Samples) -> Any:
    """The first output for all samples."""
    import numpy as np

    loaded = backends.find(found.backend).load(found.folder / found.main, found.runtime, 1)
    fixed = isinstance(found.inputs[0].shape[0], int)
    step = int(found.inputs[0].shape[0]) if fixed else BATCH
    rows = []
    for start in range(0, len(samples) - len(samples) % step, step):
        outputs = loaded.run(adapt(samples.batch(start, start + step), found.inputs))
        rows.append(restore(outputs, loaded.outputs)[0])
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--rounds", type=int, default=16)
    options = parser.parse_args()
    source, data = recalled(Path(options.recipe))
    samples, validation = data["calibration"].folder, Samples(data["validation"].folder)
    with tempfile.TemporaryDirectory() as name:
        work, costs = Path(name), {}
        plain = session.Candidate(
            "fp32 / onnxruntime", "", "onnxruntime", source.folder, source.artifact.main, source.artifact.inputs, {}, 1
        )
        candidates = [plain]
        for way in WAYS:
            made = work / way
            made.mkdir()
            described = json.dumps(source.artifact.to_json())
            command = [sys.executable, __file__, way, str(source.folder), described, str(samples), str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{way}: {done.stderr.strip().splitlines()[-1]}")
                continue
            costs[way] = json.loads(done.stdout.strip().splitlines()[-1])
            for runtime in costs[way]["runtimes"]:
                out = work / f"{way}-{runtime}"
                candidates.append(candidate(way, runtime, made, source.artifact, source.folder, samples, out))
        (work / "logs").mkdir()
        settings = replace(session.SessionOptions(data["validation"].folder), rounds=options.rounds)
        result = session.run_session(
            candidates, settings, work / "logs", machine=machine.fingerprint(), observe=machine.state
        )
        wanted, labels = scores(plain, validation), validation.labels()
        what = "accuracy" if labels is not None else "agreement"
        print(f"{'quantizer / runtime':26} {what:>9} {'SNR dB':>7} {'p50 us':>8} {'speed-up':>20}  made in  peak MB")
        for one in candidates:
            found = scores(one, validation)
            right = wanted.argmax(1) if labels is None else labels[: len(found)]
            decibels = quality.decibels(*quality.energies(wanted[: len(found)], found))
            outcome, cost = result.outcomes[one.id], costs.get(one.id.partition(" / ")[0])
            p50 = outcome.measurement.latency.p50.value / 1e3 if outcome.measurement else float("nan")
            ratio = outcome.speedup.speedup if outcome.speedup else None
            told = f"{ratio.value:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})" if ratio else "1x"
            print(
                f"{one.id:26} {(found.argmax(1) == right).mean() * 100:8.2f}% "
                f"{'' if decibels is None else f'{decibels:.1f}':>7} {p50:8.0f} {told:>20} "
                + (f"{cost['seconds']:7.1f}s {cost['peak'] / 1e6:8.0f}" if cost else "")
            )


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in WAYS:
        way, folder, described, samples, out = sys.argv[1:]
        make_one(way, Path(folder), described, Path(samples), Path(out))
    else:
        main()
