"""What calibration samples cost in memory: the peak of quantizing EfficientNet-Lite0 with some, and with twice as many.

    python tests/benchmarks/calibration_memory.py [--ranges mean-min-max mse] [--samples 100 200] [--json]

Each case is a process of its own that runs the stage `quantize: int8` alone. Told is its peak of resident memory
(proc(5), VmHWM), its baseline with the libraries loaded included, and the ratio of the last count of samples to the
first: 1.00 where memory does not grow.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgeopt.quantization.posttraining import Ranges

SAMPLE = Path(__file__).parents[2] / "sample_models" / "efficientnet_lite0"


@dataclass(frozen=True)
class Peak:
    """One quantization. `peak_mb` is in 10^6 bytes."""

    ranges: str
    samples: int
    peak_mb: float
    wall_s: float


def prepare(folder: Path, counts: list[int]) -> None:
    """The float model, and a folder of samples for each count."""
    import torch

    from edgeopt.samples import Preprocess, write_samples

    module, data = _loaded("model").build().eval(), _loaded("data")
    free = {"image": {0: torch.export.Dim("batch")}}
    example = (torch.zeros(2, 3, 224, 224),)
    torch.onnx.export(
        module,
        example,
        folder / "model.onnx",
        dynamo=True,
        external_data=False,
        input_names=["image"],
        dynamic_shapes=free,
        verbose=False,
    )
    for count in counts:
        (folder / str(count)).mkdir()
        images = {"image": data.crops(data.CALIBRATION, count, seed=0)}
        write_samples(folder / str(count), images, None, Preprocess((127.0,), (128.0,), (2, 0, 1)))


def quantize(folder: Path, ranges: str, count: int) -> Peak:
    import fashion

    from edgeopt.artifact import TensorSpec
    from edgeopt.stages import Produced, StageJob
    from edgeopt.stages import quantize as stage

    image = TensorSpec("image", ("batch", 3, 224, 224), "float32")
    scores = TensorSpec("scores", ("batch", 1000), "float32")
    produced = Produced("onnx", "model.onnx", (image,), (scores,), "fp32")
    out = folder / f"{ranges}-{count}"
    out.mkdir()
    job = StageJob(
        choice="int8",
        options=stage.Int8Options(ranges=ranges),  # type: ignore[arg-type]
        parent=fashion.artifact(folder / str(count), produced),
        parent_folder=folder,
        lineage={},
        samples={"calibration": folder / str(count)},
        target=fashion.VNNI,
        out=out,
        progress=lambda fraction, text: None,
    )
    started = time.monotonic()
    stage.run(job)
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kb = int(next(line.split()[1] for line in status if line.startswith("VmHWM")))
    return Peak(ranges, count, peak_kb * 1024 / 1e6, time.monotonic() - started)


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"efficientnet_lite0_{name}", SAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranges", nargs="+", default=["mean-min-max", "mse"], choices=get_args(Ranges))
    parser.add_argument("--samples", nargs="+", type=int, default=[100, 200])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    def alone(function: Any, *args: Any) -> Any:
        """The result of a function, called in a process of its own."""
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(function, *args).result()

    peaks: dict[str, list[Peak]] = {}
    with tempfile.TemporaryDirectory(prefix="edgeopt-calibration-") as name:
        folder = Path(name)
        alone(prepare, folder, options.samples)
        for ranges in options.ranges:
            for count in options.samples:
                peak = alone(quantize, folder, ranges, count)
                peaks.setdefault(ranges, []).append(peak)
                if not options.json:
                    print(f"{ranges}, {count} samples: {peak.peak_mb:.0f} MB in {peak.wall_s:.0f} s", flush=True)
            if not options.json:
                print(f"{ranges}: ratio {peaks[ranges][-1].peak_mb / peaks[ranges][0].peak_mb:.2f}", flush=True)
    if options.json:
        cases = [asdict(peak) for found in peaks.values() for peak in found]
        ratios = {ranges: found[-1].peak_mb / found[0].peak_mb for ranges, found in peaks.items()}
        print(json.dumps({"schema": 1, "cases": cases, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
