"""What a runtime's own file becomes: itself. No recipe names this stage: plans have it where the source is such a file.

A .tflite file of floats can be made smaller without leaving its format, by the same quantizer that `compile: tflite`
uses; OpenVINO can be told to compute an IR in bf16. Everything else needs ONNX, and there is no way back to it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from edgeopt import backends
from edgeopt.errors import StageError
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "tflite": ("int8", "fp16", "int8-weights", "int8-dynamic"),
    "openvino": ("bf16",),
}
FLOATS = ("fp32", "fp16", "bf16")


class KeepOptions(Options):
    """`precision`: "auto" leaves the file as it is."""

    precision: Literal["auto", "int8", "fp16", "bf16", "int8-weights", "int8-dynamic"] = "auto"

    def told(self) -> Mapping[str, str]:
        return {"precision": self.precision}


def choices() -> Mapping[str, type[Options]]:
    return dict.fromkeys(PRECISIONS, KeepOptions)


def tools(choice: str, options: KeepOptions) -> Sequence[str]:
    quantizer = ("ai-edge-quantizer",) if choice == "tflite" and options.precision != "auto" else ()
    return (backends.find(choice).DISTRIBUTION, *quantizer)


def sample_roles(choice: str, options: KeepOptions, precision: str) -> Sequence[str]:
    return ("calibration",) if options.precision == "int8" else ()


def objection(choice: str, options: KeepOptions, precision: str) -> str | None:
    if options.precision not in ("auto", *PRECISIONS[choice]):
        return f"a file of {choice} cannot be made to compute in {options.precision}"
    return None


def precision(choice: str, options: KeepOptions, precision: str) -> str:
    return precision if options.precision == "auto" else options.precision


def run(job: StageJob) -> Produced:
    """Requires a file of the runtime `job.choice`. Ensures that the runtime loads what it wrote.

    Raises StageError where a file that is quantized already is to be quantized.
    """
    backend, asked = backends.find(job.choice), job.options.precision
    for entry in job.parent.files:
        shutil.copyfile(job.parent_folder / entry.path, job.out / entry.path)
    main, runtime = job.out / job.parent.main, dict(job.parent.runtime)
    if asked == "bf16":
        runtime["precision"] = "bf16"
    elif asked != "auto":
        if job.parent.precision not in FLOATS:
            raise StageError(f"the model is in {job.parent.precision} already: {asked} is made from a float model")
        main.write_bytes(_quantized(job, main))
    job.progress(None, f"loading the model in {job.choice}")
    session = backend.load(main, {**runtime, "precision": "f32"} if asked == "bf16" else runtime, threads=1)
    made = job.parent.precision if asked == "auto" else asked
    return Produced(backend.FORMAT, job.parent.main, session.inputs, session.outputs, made, runtime)


def _quantized(job: StageJob, model: Path) -> bytes:
    from edgeopt.backends import tflite as runtime
    from edgeopt.formats import tflite
    from edgeopt.quantization import litert

    match job.options.precision:
        case "fp16":
            return litert.to_fp16(model)
        case "int8-weights":
            return litert.weights_to_int8(model)
        case "int8-dynamic":
            return litert.to_dynamic(model)
    model.write_bytes(tflite.signed(model, runtime.DEFAULT_SIGNATURE))
    return litert.to_int8(model, litert.calibrated(model, _feeds(job)))


def _feeds(job: StageJob) -> Iterator[dict[str, Any]]:
    from edgeopt.samples import Samples, adapt

    samples = Samples(job.samples["calibration"])
    first = [spec.shape[0] for spec in job.parent.inputs if spec.shape]
    batch = first[0] if first and isinstance(first[0], int) else 1
    for start in range(0, len(samples) - batch + 1, batch):
        if start % (20 * batch) == 0:
            job.progress(start / len(samples), f"calibrating: sample {start} of {len(samples)}")
        yield adapt(samples.batch(start, start + batch), job.parent.inputs)
