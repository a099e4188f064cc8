"""Microsoft Olive and edgeopt on the same job: static INT8 of the Fashion-MNIST sample, under a latency nothing meets.

    python tests/benchmarks/olive/run.py OLIVE

OLIVE is its command in an environment of its own: `pip install olive-ai onnxruntime torchmetrics torch`. Both judge the
original and the INT8 model on all test images, and are run twice, the second time with everything cached. The limit is
10 µs. Then `edgeopt bench` measures both INT8 models beside the original, in one session.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SAMPLE = HERE.parents[2] / "sample_models" / "fashion_mnist"
EDGEOPT = [sys.executable, "-m", "edgeopt"]
RECIPE = f"""
model: {SAMPLE / "model.onnx"}
data:
  calibration: {{from: {SAMPLE / "train.npz"}, samples: 300}}
  validation: {SAMPLE / "test.npz"}
preprocess: {{mean: 73, std: 90}}
metric: top1
steps:
  - quantize: int8
  - compile: onnxruntime
budget: {{latency p50: 10 us, accuracy drop: 1 %}}
"""


def data(name: str, part: str, count: int) -> dict[str, object]:
    dataset = {"type": "fashion_mnist", "params": {"part": part, "count": count}}
    return {
        "name": name,
        "user_script": str(HERE / "data.py"),
        "load_dataset_config": dataset,
        "post_process_data_config": {"type": "best_class"},
        "dataloader_config": {"params": {"batch_size": 1}},
    }


def configuration(folder: Path) -> dict[str, object]:
    """Olive's: its default way of measuring latency, its default static quantization."""
    accuracy = {
        "name": "accuracy_score",
        "priority": 1,
        "metric_config": {"task": "multiclass", "num_classes": 10},
        "goal": {"type": "max-degradation", "value": 0.01},
    }
    latency = {"name": "avg", "priority": 2, "goal": {"type": "threshold", "value": 0.01}}  # ms
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(SAMPLE / "model.onnx")},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [data("calibration", "train", 300), data("validation", "test", 10_000)],
        "evaluators": {
            "both": {
                "metrics": [
                    {"name": "accuracy", "type": "accuracy", "data_config": "validation", "sub_types": [accuracy]},
                    {"name": "latency", "type": "latency", "data_config": "validation", "sub_types": [latency]},
                ]
            }
        },
        "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "host": "here",
        "target": "here",
        "evaluator": "both",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }


def timed(what: str, command: list[str], **environment: str) -> None:
    """Runs a command and prints wall seconds, CPU seconds and its exit code."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=False)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what:34} {wall:6.1f} s {cpu:6.1f} s CPU, exit code {done.returncode}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("olive")
    olive = parser.parse_args().olive
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(configuration(folder)))
        (folder / "recipe.yaml").write_text(RECIPE)
        convert = [*EDGEOPT, "convert", str(folder / "recipe.yaml"), "--output"]
        cache = {"EDGEOPT_CACHE": str(folder / "edgeopt-cache")}
        timed("olive --help", [olive, "--help"])
        timed("edgeopt --help", [*EDGEOPT, "--help"])
        for turn in ("first", "again"):
            timed(f"olive run, {turn}", [olive, "run", "--config", str(folder / "config.json")])
            timed(f"edgeopt convert, {turn}", [*convert, str(folder / turn)], **cache)
        timed(
            "edgeopt convert, without the limit",
            [*convert, str(folder / "run"), "--budget", "latency p50=1 s"],
            **cache,
        )
        models = [str(SAMPLE / "model.onnx"), str(folder / "out" / "model.onnx"), str(folder / "run" / "best")]
        told = ["--data", str(SAMPLE / "test.npz"), "--mean", "73", "--std", "90"]
        subprocess.run([*EDGEOPT, "bench", *models, *told, "--quiet"], check=True)


if __name__ == "__main__":
    main()
