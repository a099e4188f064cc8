"""`edgeopt init`: looks at a model, runs the original shortly, and writes a recipe that runs as it is.

What is written is tried: the original goes the way of `convert`, from its import to its measurement, on the inputs that
the recipe names. Without samples the recipe times random inputs, and asks nothing of how right a candidate is.
"""

from __future__ import annotations

import datetime
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeopt import (
    backends,
    catalog,
    formats,
    guess,
    inspection,
    isa,
    recipe,
    run,
    schema,
    stages,
    starter,
    worker,
    yaml,
)
from edgeopt.artifact import TensorSpec
from edgeopt.bundle import Bundle, read_bundle
from edgeopt.errors import InputError, StageError, from_json
from edgeopt.measuring import machine
from edgeopt.report.live import Display
from edgeopt.samples import Preprocess
from edgeopt.samples import Samples as Folder
from edgeopt.starter import Found, Option, Samples
from edgeopt.units import format_fraction, format_size, format_time

SCHEMA = 1
LOOK = {"rounds": 8, "block": "25 ms"}  # of the measurement
TRIED = 500  # samples that the original is tried on
SECONDS = 600.0
FAR = 4  # folders up, from where on a path is written whole
BYTES = Preprocess((0.0,), (255.0,))
# What image models are commonly fed, from bytes: as they are, 0 to 1, -1 to 1, ImageNet's mean and deviation.
PREPROCESSES = (
    Preprocess(),
    BYTES,
    Preprocess((127.5,), (127.5,)),
    Preprocess((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
)
OFTEN = 0.02  # a preprocessing is chosen where it is right on so many more of the samples than the one before


@dataclass(frozen=True)
class _Source:
    """What a recipe is to be written for: absolute locations, a folder for what is tried, and the run's display."""

    model: str
    weights: str | None
    scratch: Path
    display: Display


def shapes(texts: Sequence[str]) -> dict[str, TensorSpec]:
    """ "image=1,3,224,224" or "ids=int64[1,128]", batch first, by input name. Raises InputError."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"(.+?)=(?:(\w+)\[)?(\d+(?:\s*,\s*\d+)*)\]?", text)
        sizes = tuple(int(size) for size in match[3].split(",")) if match else ()
        if match is None or 0 in sizes:
            raise InputError(
                f"{text!r} is no shape", where="--shape", remedy='Write it like --shape "image=1,3,224,224".'
            )
        found[match[1]] = TensorSpec(match[1], sizes, match[2] or "float32")
    return found


def write(
    model: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    shapes: Mapping[str, TensorSpec],
    output: Path | None = None,
    display: Display,
) -> dict[str, Any]:
    """Look, measure, write. Returns what was found and written, as plain JSON.

    `shapes` are those of `shapes`, for inputs that there are no samples of. Raises InputError where a file is there
    already, and where the model is not read or does not run; and what `edgeopt.run.convert` raises.
    """
    here = Path.cwd()
    located = recipe.locate(model, here)
    is_code = formats.format_of(located) == "torch"
    file = located.rpartition(":")[0] if is_code else located
    output = (output or here / f"{Path(file).stem}.yaml").absolute()
    beside = output.with_name(f"{output.stem}_data.py") if data is None else None
    for path in filter(None, (output, beside)):
        _check_new(path)
    if data is not None and shapes:
        raise InputError("--shape is for a model without samples", remedy="Leave out --shape or --data.")
    with tempfile.TemporaryDirectory(prefix="edgeopt-init-") as scratch:
        source = _Source(located, recipe.locate(weights, here) if weights else None, Path(scratch), display)
        specs = () if is_code else _signature(source)
        text, samples, notes = None, None, []
        if beside is None:
            samples = _samples(source, recipe.locate(str(data), here), specs)
            used: dict[str, Any] = {"validation": {"from": samples.location, "samples": TRIED}}
        else:
            drawn = _drawn(specs, shapes, model)
            notes += [f"A size is a guess in {spec}: --shape says another." for spec, guessed in drawn if guessed]
            text = starter.data_file(output.name, drawn)
            (source.scratch / beside.name).write_text(text, encoding="utf-8")
            used = {"timing": str(source.scratch / f"{beside.name}:timing")}
        measured, bundle = _measured(source, used, samples.preprocess if samples else None)
        specs = specs or bundle.artifact.inputs
        task = guess.task(specs, bundle.artifact.outputs)
        if samples is not None:
            samples = _by_labels(source, samples, bundle, task, measured)
            if samples.top1 is not None:
                notes.append(f"The original is right on {format_fraction(samples.top1)} of the samples tried.")
            if samples.why:
                notes.append("How the samples are preprocessed is a guess: see `preprocess` in the recipe.")
    folder = output.parent
    found = Found(
        name=output.name,
        model=_relative(located, folder),
        weights=_relative(source.weights, folder) if source.weights else None,
        schema=_relative(str(schema.FOLDER / "recipe.json"), folder),
        inputs=specs,
        outputs=bundle.artifact.outputs,
        task=task,
        measured=measured,
        surroundings=_surroundings(measured),
        training=_training(located),
        quantize=_quantize(located, samples),
        compile=_compile(located, judged=samples is not None),
        samples=replace(samples, location=_relative(samples.location, folder)) if samples else None,
        data_file=beside.name if beside else None,
    )
    written = starter.recipe(found)
    recipe.resolve(yaml.parse(written, output.name), base=folder, name=output.stem)
    if beside is not None and text is not None:
        _write_new(beside, text)
    _write_new(output, written)
    return {
        "schema": SCHEMA,
        "recipe": str(output),
        "data_file": str(beside) if beside else None,
        "task": {"name": task.name, "why": task.why},
        "inputs": [spec.to_json() for spec in specs],
        "outputs": [spec.to_json() for spec in bundle.artifact.outputs],
        "original": measured,
        "notes": notes,
    }


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """What was written, for a person."""
    original, recipe_file = found["original"], os.path.relpath(found["recipe"])
    p50 = (original["latency_ns"] or {}).get("p50")
    yield (
        f"{recipe_file}: a recipe for a {found['task']['name']} ({found['task']['why']}). The original "
        + (f"takes {format_time(p50['value'])} (p50) in {original['backend']}, and " if p50 else "")
        + f"has {format_size(original['artifact']['size_bytes'])}."
    )
    if found["data_file"]:
        yield (
            f"{os.path.relpath(found['data_file'])}: random inputs, for times alone. With samples of your own, "
            "follow the comments in the recipe."
        )
    yield from found["notes"]
    yield f"Next:  edgeopt convert {recipe_file}"


def _signature(source: _Source) -> tuple[TensorSpec, ...]:
    """The inputs of a model file."""
    found = inspection.inspect(source.model, weights=source.weights, data=None, base=source.scratch)
    return tuple(TensorSpec.from_json(spec) for spec in found["inputs"])


def _drawn(
    specs: Sequence[TensorSpec], shapes: Mapping[str, TensorSpec], model: str
) -> list[tuple[TensorSpec, Sequence[int]]]:
    """What random inputs are drawn: each input with all sizes known, and the axes that are guessed."""
    if not specs and not shapes:
        raise InputError(
            f"{model}: a torch model does not say what inputs it takes",
            remedy='Give samples (--data samples.npz), or a shape for each input: --shape "image=1,3,224,224".',
        )
    names = [spec.name for spec in specs]
    if wrong := next((name for name in shapes if names and name not in names), None):
        raise InputError(recipe.unknown("input", wrong, names), where="--shape")
    return [guess.filled(spec, shapes) for spec in specs] or [(spec, ()) for spec in shapes.values()]


def _samples(source: _Source, location: str, specs: Sequence[TensorSpec]) -> Samples:
    """The samples at `location`, checked, with the preprocessing that the shapes and dtypes ask for."""
    out = source.scratch / "samples"
    out.mkdir()
    args = {"location": location, "samples": None, "seed": 0, "preprocess": Preprocess().to_json(), "out": str(out)}
    found = worker.call("edgeopt.data:prepare", args, log=source.scratch / "data.log", limits=worker.Limits(SECONDS))
    arrays = {name: (tuple(shape), dtype) for name, (shape, dtype) in found["inputs"].items()}
    preprocess = Preprocess()
    if len(arrays) == 1:
        shape, dtype = next(iter(arrays.values()))
        order = guess.transposed(shape, specs[0].shape[1:] if specs else guess.of_images(shape))
        takes_floats = not specs or specs[0].dtype.startswith("float")
        scale = BYTES if takes_floats and len(shape) == 3 and dtype == "uint8" else Preprocess()
        preprocess = replace(scale, transpose=order or ())
    why = "Bytes to 0 ... 1: a guess. Write what the model was trained with." if preprocess.std else ""
    return Samples(location, found["count"], arrays, found["labels"], preprocess, why)


def _measured(source: _Source, data: Mapping[str, Any], preprocess: Preprocess | None) -> tuple[dict[str, Any], Bundle]:
    """The original's candidate in the document of a short run, and its bundle."""
    runtime = formats.runtime_of(source.model)
    usable = [name for name in catalog.target("host").backends if runtime in (None, name) and _installed(name)]
    written: dict[str, Any] = {"model": source.model, "weights": source.weights, "data": data, "measure": LOOK}
    written["steps"] = [{"compile": usable[0]}] if usable else []
    if preprocess:
        chosen = {key: list(value) for key, value in preprocess.to_json().items() if value}
        written["preprocess"] = chosen or None
    document = yaml.Document("init", {key: value for key, value in written.items() if value is not None})
    look = recipe.resolve(document, base=source.scratch, name="init")
    try:
        found = run.convert(look, output=source.scratch / "run", remeasure=True, display=source.display)
        candidate = found["candidates"][0]
        if not found["winner"]:
            raise from_json(candidate["error"])
    except (InputError, StageError) as error:
        if "timing" in data and not error.remedy:
            error.remedy = 'It takes other shapes? Give one: --shape "image=1,3,224,224", or --data samples.npz.'
        raise
    return candidate, read_bundle(source.scratch / "run" / "best")


def _by_labels(
    source: _Source, samples: Samples, bundle: Bundle, task: guess.Task, measured: Mapping[str, Any]
) -> Samples:
    """With labels: how often the original is right; of the usual preprocessings of bytes, the one by which it is most
    often."""
    if not samples.labels or task.name != "classifier":
        return samples
    if not samples.preprocess.std:
        return replace(samples, top1=measured["quality"]["value"])
    order = samples.preprocess.transpose
    best, most = samples.preprocess, -1.0
    for index, tried in enumerate((*PREPROCESSES, _standardized(source, order))):
        channels = bundle.artifact.inputs[0].shape[1:2]
        if len(tried.mean) in (0, 1, *channels):
            preprocess = replace(tried, transpose=order)
            share = _accuracy(source, bundle, preprocess, index)
            if share > most + OFTEN:
                best, most = preprocess, share
    why = "Chosen by the labels, among what is usual. What the model was trained with is better still."
    return replace(samples, preprocess=best, why=why, top1=most)


def _standardized(source: _Source, order: Sequence[int]) -> Preprocess:
    """By the mean and deviation of the samples themselves, channel by channel."""
    import numpy as np

    given = Folder(source.scratch / "samples")
    values = Preprocess(transpose=tuple(order)).apply(given.raw(given.inputs[0])[:TRIED]).astype(np.float64)
    axes = (0, *range(2, values.ndim))
    mean, std = values.mean(axes).round(1), np.maximum(values.std(axes).round(1), 1.0)
    return Preprocess(tuple(map(float, mean)), tuple(map(float, std)))


def _accuracy(source: _Source, bundle: Bundle, preprocess: Preprocess, index: int) -> float:
    """The top-1 accuracy of the original on the first samples, so preprocessed."""
    from edgeopt.samples import write_samples

    given = Folder(source.scratch / "samples")
    folder, out = source.scratch / f"tried-{index}", source.scratch / f"outputs-{index}"
    folder.mkdir()
    out.mkdir()
    labels = given.labels()
    assert labels is not None
    write_samples(folder, {name: given.raw(name)[:TRIED] for name in given.inputs}, labels[:TRIED], preprocess)
    artifact = bundle.artifact
    args = {
        "backend": bundle.backend,
        "main": str(bundle.main),
        "runtime": dict(artifact.runtime),
        "threads": 1,
        "inputs": [spec.to_json() for spec in artifact.inputs],
        "outputs": [spec.to_json() for spec in artifact.outputs],
        "samples": str(folder),
        "metric": "top1",
        "out": str(out),
    }
    log = source.scratch / "quality.log"
    return float(worker.call("edgeopt.measuring.quality:run", args, log=log, limits=worker.Limits(SECONDS))["value"])


def _surroundings(measured: Mapping[str, Any]) -> str:
    found = machine.fingerprint()
    today = datetime.date.today().isoformat()
    runtime = f"{measured['backend']} {measured['runtime_version']}"
    return f"{today}, on {found.cpu or found.arch} ({found.cores} cores), 1 thread, {runtime}"


def _training(model: str) -> tuple[Option, ...]:
    """Steps that train, or need a look at what is lost: never switched on by themselves."""
    if formats.runtime_of(model):
        return ()
    missing = _lacking("prune", "", "prune")
    return (
        Option("prune: [none, {channels: auto}]", "fewer channels, as many as pay; needs `train` data", missing),
        Option("distill: {epochs: 5}", "trains what was pruned after the original", missing),
    )


def _quantize(model: str, samples: Samples | None) -> tuple[Option, ...]:
    runtime = formats.runtime_of(model)
    if runtime == "openvino":
        return ()
    off = None if samples else "needs samples"
    lacking = off or _lacking("quantize", "int8", runtime or "onnxruntime")
    return (Option("quantize: [none, int8]", "8-bit integers, calibrated on the samples", lacking),)


def _compile(model: str, *, judged: bool) -> tuple[Option, ...]:
    """Every runtime of this machine; half precision where it is fast here, and where its loss is judged."""
    runtime = formats.runtime_of(model)
    here = isa.instruction_sets()
    found = []
    for name in catalog.target("host").backends:
        if runtime not in (None, name):
            continue
        lacking = _lacking("compile", name, name)
        found.append(Option(name, "", lacking))
        if name == "openvino" and {"avx512_bf16", "amx_bf16", "bf16"} & set(here):
            off = None if judged else "needs samples: it rounds"
            found.append(Option("openvino: {precision: bf16}", "fast on this processor", lacking or off))
    return tuple(found)


def _lacking(stage: str, choice: str, extra: str) -> str | None:
    """What has to be installed for an alternative, None where all is there."""
    options = stages.find(stage).choices()[choice].model_construct()
    tools = [*stages.find(stage).tools(choice, options)]
    if stage == "compile":
        tools.append(backends.find(choice).DISTRIBUTION)
    absent = next((tool for tool in tools if backends.version(tool) is None), None)
    return f"not installed: pip install 'edgeopt[{extra}]'" if absent else None


def _installed(backend: str) -> bool:
    return backends.status(backend).usable and _lacking("compile", backend, backend) is None


def _relative(location: str, folder: Path) -> str:
    """A location as a recipe in `folder` names it: a path from there, a module as it is."""
    file, colon, function = location.rpartition(":")
    is_code = bool(colon) and function.isidentifier()
    path = Path(file if is_code else location)
    if not path.is_absolute():
        return location
    told = os.path.relpath(path, folder)
    if Path(told).parts[:FAR] == (os.pardir,) * FAR:
        told = str(path)
    return f"{told}:{function}" if is_code else told


def _check_new(path: Path) -> None:
    """That a file may be written. Raises InputError."""
    if path.exists() or path.is_symlink():
        raise InputError(
            f"{os.path.relpath(path)} is there already, and init never writes over a file",
            remedy="Give a new name: -o another.yaml",
        )
    if path.suffix not in (".yaml", ".yml", ".py"):
        raise InputError(f"{path.name}: a recipe ends in .yaml", where="--output", remedy=f"-o {path.stem}.yaml")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent} is no folder that can be written", where="--output")


def _write_new(path: Path, text: str) -> None:
    """Write a file that must not be there: one that came up meanwhile is left as it is."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        _check_new(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
