"""How well one artifact does on the validation samples, in a process of its own.

With labels: which samples it got right. With the outputs of the original model: how faithful it is to them, as top-1
agreement where the first output looks like class scores, and as signal to quantization noise. Accuracy belongs to an
artifact on a target: other instruction sets give other numbers.

Outputs are written as they come and compared in pieces, so that memory does not grow with the number of samples. This
module knows nothing of budgets, nor of how artifacts were made.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.backends import placing
from edgeopt.errors import InputError, StageError
from edgeopt.placement import Placement
from edgeopt.samples import Samples, adapt, restore
from edgeopt.worker import Channel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

# What each metric needs besides the artifact: labels, or the outputs of the original model.
METRICS: Mapping[str, str] = {"top1": "labels", "top5": "labels", "agreement": "reference", "sqnr": "reference"}
PLACES = {"top1": 1, "top5": 5}
BATCH = 100
MANIFEST = "outputs.json"
HITS = "hits.npy"


def run(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job of the worker.

    `args`: backend, main (path), runtime, threads, inputs and outputs (of the artifact, as JSON), samples (folder),
    metric, out (an empty folder), reference (the `out` of the original model; optional), placement (whether to ask
    where operators run; optional).

    Writes outputs-<i>.npy (float32, one row a sample) and hits.npy (bool a sample; not for sqnr) below `out`. Returns
    metric, value (None where what it needs is missing: fidelity of the original), samples, hits (a count), ns, and
    fidelity as `fidelity` gives it, None without a reference, and placement (`edgeopt.placement.Placement`),
    None where it was not asked. Raises InputError where labels or samples do not fit the model, StageError where
    outputs are not finite.
    """
    metric = args["metric"]
    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r}", remedy=f"Metrics: {', '.join(METRICS)}.")
    samples = Samples(Path(args["samples"]))
    labels = samples.labels()
    if METRICS[metric] == "labels" and labels is None:
        raise InputError(
            f"the metric {metric} needs labels, and the samples have none",
            remedy="Save class indices as `labels` beside the inputs, or set `metric: agreement`.",
        )
    if not len(samples):
        raise InputError("there are no validation samples")
    out = Path(args["out"])
    started = time.perf_counter_ns()
    names = _run_all(args, samples, out, channel)
    elapsed_ns = time.perf_counter_ns() - started

    hits = None
    if METRICS[metric] == "labels" and labels is not None:
        hits = class_hits(_load(out, 0), labels, PLACES[metric])
    found = fidelity(Path(args["reference"]), out) if args.get("reference") else None
    if metric == "agreement" and args.get("reference"):
        hits = agreements(_load(Path(args["reference"]), 0), _load(out, 0))
    value = None if found is None else found["sqnr_db"] if metric == "sqnr" else None
    if hits is not None:
        import numpy as np

        np.save(out / HITS, hits, allow_pickle=False)
        value = float(hits.mean())
    return {
        "metric": metric,
        "value": value,
        "samples": len(samples),
        "hits": None if hits is None else int(hits.sum()),
        "ns": elapsed_ns,
        "outputs": names,
        "fidelity": found,
        "placement": _placement(args, samples).to_json() if args.get("placement") else None,
    }


def compare(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job that only compares outputs already written: `args` are reference and out, two folders. See `fidelity`."""
    channel.progress(None, "comparing outputs")
    return fidelity(Path(args["reference"]), Path(args["out"]))


def fidelity(reference: Path, out: Path) -> Dict[str, Any]:
    """How near the outputs in `out` are to those in `reference`.

    agreement: the share of samples with the same top-1 class, None where the first output does not look like class
    scores (samples by two or more columns). sqnr_db: 10 log10(sum(reference ** 2) / sum((reference - output) ** 2))
    over all outputs, None where they are equal (`exact` is then true) or the reference is all zero. worst_output:
    the name of the output with the lowest sqnr, and worst_sqnr_db. Raises InputError where the two differ in shape.
    """
    names, given = _names(reference), _names(out)
    if len(names) != len(given):
        raise StageError(f"the original has {len(names)} outputs, the candidate {len(given)}")
    signal, noise = 0.0, 0.0
    worst: Optional[Tuple[float, str]] = None
    for index, name in enumerate(names):
        wanted, found = _load(reference, index), _load(out, index)
        if wanted.shape != found.shape:
            raise StageError(
                f"output {name}: the original gives {list(wanted.shape)} for all samples, "
                f"the candidate {list(found.shape)}"
            )
        of_signal, of_noise = energies(wanted, found)
        ratio = decibels(of_signal, of_noise)
        if ratio is not None and (worst is None or ratio < worst[0]):
            worst = (ratio, name)
        signal, noise = signal + of_signal, noise + of_noise
    first = _load(reference, 0)
    agreed = agreements(first, _load(out, 0)) if is_scores(first) else None
    return {
        "agreement": None if agreed is None else float(agreed.mean()),
        "agreed": None if agreed is None else int(agreed.sum()),
        "sqnr_db": decibels(signal, noise),
        "exact": noise == 0.0,
        "worst_output": worst[1] if worst else None,
        "worst_sqnr_db": worst[0] if worst else None,
        "samples": len(first),
    }


def class_hits(scores: Array, labels: Array, places: int) -> Array:
    """Which samples have their label among the `places` highest scores: bool of shape (samples,).

    `scores` is (samples, classes), `labels` holds class indices. Ties go to the lower index. Raises InputError where
    they do not fit each other.
    """
    import numpy as np

    if labels.dtype.kind not in "iu":
        raise InputError(f"labels must be class indices, integers; these are {labels.dtype}")
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] != 1:
        raise InputError(f"labels must be one class index a sample; these have {labels.shape[1]} a sample")
    if not is_scores(scores):
        raise InputError(
            f"top-1 and top-5 need class scores (samples, classes); the model's first output is {list(scores.shape)}",
            remedy="Set `metric: sqnr` in the recipe.",
        )
    if len(labels) != len(scores):
        raise InputError(f"there are {len(labels)} labels and {len(scores)} samples")
    lowest, highest, classes = int(labels.min()), int(labels.max()), scores.shape[1]
    if lowest < 0 or highest >= classes:
        wrong = lowest if lowest < 0 else highest
        raise InputError(
            f"a label is {wrong}, and the model has {classes} classes, 0 to {classes - 1}",
            remedy="Check that the labels belong to this model, and count from 0.",
        )
    hits = np.zeros(len(scores), bool)
    for rows in _pieces(len(scores)):
        best = np.argsort(-np.asarray(scores[rows]), axis=1, kind="stable")[:, :places]
        hits[rows] = (best == labels[rows]).any(axis=1)
    return hits


def paired_counts(base: Path, candidate: Path) -> Tuple[int, int, int, int]:
    """From two hits.npy: both right, only base, only candidate, neither; for `edgeopt.statistics.paired_drop`."""
    import numpy as np

    a, b = np.load(base, allow_pickle=False), np.load(candidate, allow_pickle=False)
    if a.shape != b.shape:
        raise InputError(f"{len(a)} and {len(b)} samples cannot be paired")
    return int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())


def _run_all(args: Mapping[str, Any], samples: Samples, out: Path, channel: Channel) -> List[str]:
    """Run all samples and write all outputs. Returns the names of the outputs."""
    inputs = [TensorSpec.from_json(spec) for spec in args["inputs"]]
    outputs = [TensorSpec.from_json(spec) for spec in args["outputs"]]
    session = backends.require(args["backend"]).load(Path(args["main"]), args["runtime"], args["threads"])
    fixed = inputs[0].shape[0] if inputs and inputs[0].shape else None
    batch = fixed if isinstance(fixed, int) else min(BATCH, len(samples))
    written: List[Array] = []
    for start in range(0, len(samples), batch):
        stop = min(start + batch, len(samples))
        feeds = adapt(_filled(samples.batch(start, stop), batch if isinstance(fixed, int) else stop - start), inputs)
        values = restore(session.run(feeds), outputs)
        for index, value in enumerate(values):
            rows = _rows(value, len(next(iter(feeds.values()))), outputs[index].name)[: stop - start]
            if not start:
                written.append(_create(out / f"outputs-{index}.npy", (len(samples), *rows.shape[1:])))
            _store(written[index], rows, start, outputs[index].name)
        channel.progress(stop / len(samples), "validating")
    for array in written:
        array.flush()  # type: ignore[attr-defined]
    names = [spec.name for spec in outputs]
    (out / MANIFEST).write_text(json.dumps({"outputs": names}))
    return names


def _placement(args: Mapping[str, Any], samples: Samples) -> Placement:
    """Asked with what one timed inference is given."""
    inputs = [TensorSpec.from_json(spec) for spec in args["inputs"]]
    first = inputs[0].shape[0] if inputs and inputs[0].shape else None
    batch = first if isinstance(first, int) else 1
    feeds = adapt(_filled(samples.batch(0, min(batch, len(samples))), batch), inputs)
    return placing.tell(args["backend"], Path(args["main"]), args["runtime"], args["threads"], feeds)


def _filled(feeds: Mapping[str, Array], batch: int) -> Dict[str, Array]:
    """The last batch of a model with a fixed batch: filled up with its last sample."""
    import numpy as np

    return {
        name: value if len(value) == batch else np.concatenate([value, np.repeat(value[-1:], batch - len(value), 0)])
        for name, value in feeds.items()
    }


def _rows(value: Array, batch: int, name: str) -> Array:
    """An output as one row a sample. With one sample, an output without a batch axis is its row."""
    if value.ndim and len(value) == batch:
        return value
    if batch == 1:
        return value[None]
    raise StageError(f"output {name} has shape {list(value.shape)} for {batch} samples: there is no row for each")


def _create(path: Path, shape: Tuple[int, ...]) -> Array:
    import numpy as np

    array: Array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return array


def _store(array: Array, rows: Array, start: int, name: str) -> None:
    import numpy as np

    if rows.shape[1:] != array.shape[1:]:
        raise StageError(
            f"output {name} changes its shape from sample to sample: {list(array.shape[1:])}, "
            f"then {list(rows.shape[1:])}"
        )
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if not finite.all():
        raise StageError(f"output {name} holds NaN or infinite values, first at sample {start + int(finite.argmin())}")
    array[start : start + len(rows)] = rows


def _names(folder: Path) -> Sequence[str]:
    names: Sequence[str] = json.loads((folder / MANIFEST).read_text())["outputs"]
    return names


def _load(folder: Path, index: int) -> Array:
    import numpy as np

    array: Array = np.load(folder / f"outputs-{index}.npy", mmap_mode="r", allow_pickle=False)
    return array


def is_scores(array: Array) -> bool:
    """Whether an output looks like class scores: samples by two or more columns."""
    return array.ndim == 2 and array.shape[1] >= 2


def agreements(wanted: Array, found: Array) -> Array:
    """Which samples have the same top-1 class: bool of shape (samples,). Raises InputError without class scores."""
    import numpy as np

    if not is_scores(wanted) or wanted.shape != found.shape:
        raise InputError(
            f"agreement needs class scores (samples, classes); the first outputs are {list(wanted.shape)} and "
            f"{list(found.shape)}",
            remedy="Set `metric: sqnr` in the recipe.",
        )
    agreed: Array = np.argmax(wanted, axis=1) == np.argmax(found, axis=1)
    return agreed


def energies(wanted: Array, found: Array) -> Tuple[float, float]:
    """Sums of squares of the reference and of the difference, added up in float64."""
    import numpy as np

    signal, noise = 0.0, 0.0
    for rows in _pieces(len(wanted)):
        value = wanted[rows].astype(np.float64)
        signal += float(np.square(value).sum())
        noise += float(np.square(value - found[rows]).sum())
    return signal, noise


def decibels(signal: float, noise: float) -> Optional[float]:
    """10 log10(signal / noise), None where either is zero."""
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _pieces(count: int, size: int = 256) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
