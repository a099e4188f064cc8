"""Layers kept in float for a drop of at most so much: edgeopt's control beside NNCF's, on EfficientNet-Lite0.

    python tests/benchmarks/accuracy_control.py [--drop "5 %"] [--control 100] [--judged 200]

Each runs in a process of its own, one after the other: from the float ONNX and 100 calibration images to a canonical
Q/DQ model. Both judge themselves by top-1 agreement with the float model on the same control images, with the same
quantizer settings. Their results are then judged on images that neither has seen. Times are wall and CPU seconds of
the process, all threads; memory is its peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeopt import units

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "sample_models" / "efficientnet_lite0"
INPUT = "image"


def prepare(folder: Path, control: int, judged: int) -> None:
    """The float model and three sets of images, below `folder`."""
    from edgeopt import data
    from edgeopt.formats import ModelRef, torch
    from edgeopt.samples import Preprocess

    preprocess = Preprocess((127.0,), (128.0,), (2, 0, 1)).to_json()
    for name, function, count in (("calibration", "calibration", 100), ("validation", "validation", control + judged)):
        (folder / name).mkdir()
        args = {"location": f"{SAMPLE}/data.py:{function}", "samples": count, "seed": 0, "preprocess": preprocess}
        data.prepare({**args, "part": None, "out": str(folder / name)}, Quiet())  # type: ignore[arg-type]
    (folder / "model").mkdir()
    torch.to_onnx(ModelRef(f"{SAMPLE}/model.py:build"), folder / "calibration", folder / "model", lambda *_: None)
    images = np.load(folder / "validation" / f"{INPUT}.npy")
    for name, part in (("control", images[:control]), ("judged", images[control : control + judged])):
        (folder / name).mkdir()
        np.save(folder / name / f"{INPUT}.npy", part)
        manifest = json.loads((folder / "validation" / "samples.json").read_text())
        (folder / name / "samples.json").write_text(json.dumps({**manifest, "count": len(part)}))


class Quiet:
    """A channel to nobody."""

    def progress(self, fraction: float | None, text: str) -> None:
        pass


def ours(folder: Path, drop: float) -> dict[str, Any]:
    from edgeopt.artifact import Artifact, MadeBy, TensorSpec, list_files
    from edgeopt.stages import StageJob, quantize
    from edgeopt.target import Target

    image, scores = (
        TensorSpec(INPUT, ("batch", 3, 224, 224), "float32"),
        TensorSpec("scores", ("batch", 1000), "float32"),
    )
    parent = Artifact(
        "onnx", "model.onnx", list_files(folder / "model"), (image,), (scores,), "fp32", MadeBy("import", 1, {}, {})
    )
    out = folder / "ours"
    out.mkdir()
    produced = quantize.run(
        StageJob(
            choice="int8",
            options=quantize.Int8Options(max_drop=f"{drop * 100} %", overflow_fix="disable"),
            parent=parent,
            parent_folder=folder / "model",
            lineage={"import": folder / "model"},
            samples={"calibration": folder / "calibration", "tuning": folder / "control"},
            target=Target("here"),
            out=out,
            progress=lambda *_: None,
            threads=1,
        )
    )
    told = produced.details["control"]
    return {"model": str(out / "model.onnx"), "evaluations": told["evaluations"]}


def nncfs(folder: Path, drop: float) -> dict[str, Any]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf
    import onnxruntime
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )

    from edgeopt.samples import Samples

    def session(model: Any) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    calibration, control = Samples(folder / "calibration"), Samples(folder / "control")
    feeds = [control.batch(i, i + 1) for i in range(len(control))]
    model = onnx.load(folder / "model" / "model.onnx")
    floating = session(model)
    wanted = [int(floating.run(None, feed)[0].argmax()) for feed in feeds]
    evaluations = 0

    def validate(candidate: Any, _: Any) -> tuple[float, list[float]]:
        nonlocal evaluations
        evaluations += 1
        running = session(candidate)
        hits = [float(running.run(None, feed)[0].argmax() == right) for feed, right in zip(feeds, wanted)]
        return float(np.mean(hits)), hits

    made = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset([calibration.batch(i, i + 1) for i in range(len(calibration))]),
        validation_dataset=nncf.Dataset(range(len(feeds))),
        validation_fn=validate,
        max_drop=drop,
        drop_type=nncf.DropType.ABSOLUTE,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        fast_bias_correction=False,
        subset_size=len(calibration),
        advanced_quantization_parameters=AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False), overflow_fix=OverflowFix.DISABLE
        ),
    )
    onnx.save(made, folder / "nncf.onnx")
    return {"model": str(folder / "nncf.onnx"), "evaluations": evaluations}


def judge(folder: Path, path: str) -> dict[str, Any]:
    """What a result is, and how faithful it is on both sets."""
    from edgeopt.measuring import quality
    from edgeopt.quantization import execution
    from edgeopt.samples import Samples
    from edgeopt.stages.quantize import count_operators

    original, made = onnx.load(folder / "model" / "model.onnx"), onnx.load(path)
    quantized, left = count_operators(made)
    told: dict[str, Any] = {"quantized": quantized, "float": sum(left.values()), "float_operators": left}
    for name in ("control", "judged"):
        feeds = execution.batches(original, Samples(folder / name))
        wanted, found = execution.outputs(original, feeds, 1), execution.outputs(made, feeds, 1)
        told[name] = float(quality.agreements(wanted[0], found[0]).mean())
        told[f"{name}_snr_db"] = execution.snr_db(wanted, found)[0]
    return told


def child(which: str, folder: Path, drop: float) -> None:
    started = time.monotonic()
    found = {"ours": ours, "nncf": nncfs}[which](folder, drop)
    wall, own = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    found |= {"wall": wall, "cpu": own.ru_utime + own.ru_stime, "peak_mb": own.ru_maxrss / 1024}
    (folder / f"{which}.json").write_text(json.dumps(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drop", default="5 %", help="of agreement, on the control images")
    parser.add_argument("--control", type=int, default=100)
    parser.add_argument("--judged", type=int, default=100)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    drop = units.parse_fraction(options.drop)
    if options.child:
        child(options.child[0], Path(options.child[1]), drop)
        return 0
    print("| | wall s | CPU s | peak MB | evaluations | in int8 | in float | agreement | on other images | SQNR dB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder, options.control, options.judged)
        for which, name in (("ours", "edgeopt"), ("nncf", "NNCF")):
            command = [sys.executable, __file__, "--drop", options.drop, "--child", which, str(folder)]
            with open(folder / f"{which}.log", "w") as log:
                ended = subprocess.run(command, stdout=log, stderr=log, check=False)
            if ended.returncode:
                print(f"{name} failed:", (folder / f"{which}.log").read_text()[-2000:])
                continue
            found = json.loads((folder / f"{which}.json").read_text())
            told = judge(folder, found["model"])
            print(
                f"| {name} | {found['wall']:.0f} | {found['cpu']:.0f} | {found['peak_mb']:.0f} | "
                f"{found['evaluations']} | {told['quantized']} | {told['float']} | {told['control']:.3f} | "
                f"{told['judged']:.3f} | {told['judged_snr_db']:.1f} |",
                flush=True,
            )
            print(f"  {name} in float: {told['float_operators']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
