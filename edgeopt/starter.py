"""The text of a first recipe, and of the Python file with inputs beside it. Pure: what was found out is given.

Whatever is not known, not installed or not possible without samples stands as a comment that says what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt import __version__, guess, yaml
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.guess import Task
from edgeopt.samples import Preprocess
from edgeopt.text import plain
from edgeopt.units import format_count, format_fraction, format_size, format_time

FEW = 50  # samples: fewer are not split into those that calibrate and those that validate
ROOM_LATENCY, ROOM_MEMORY, ROOM_SIZE = 1.5, 1.5, 1.1  # what budgets leave above the original
MEMORY_BYTES = 64 << 20  # that a runtime may take besides
IMAGENET = "{mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]}"


@dataclass(frozen=True)
class Option:
    """One alternative of a step as it is written. `about` is its comment; `off` says why it is one itself."""

    written: str
    about: str = ""
    off: str | None = None


@dataclass(frozen=True)
class Samples:
    """The samples that were given. `arrays` maps names to the shape of one sample and its dtype; `preprocess` is what
    was chosen for them, and `why` says on what grounds. `location` is as the recipe has it."""

    location: str
    count: int
    arrays: Mapping[str, tuple[Sequence[int], str]]
    labels: bool
    preprocess: Preprocess
    why: str = ""
    top1: float | None = None


@dataclass(frozen=True)
class Found:
    """Everything that a first recipe says. `measured` is the original's candidate in a run's document; `surroundings`
    where and when that was. `inputs` are as the model has them, `drawn` as the file `data_file` draws them, with the
    axes that were guessed. Locations are as the recipe has them."""

    name: str
    model: str
    weights: str | None
    schema: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    task: Task
    measured: Mapping[str, Any]
    surroundings: str
    quantize: Sequence[Option]
    compile: Sequence[Option]
    training: Sequence[Option]
    samples: Samples | None = None
    data_file: str | None = None


def recipe(found: Found) -> str:
    """The recipe's text."""
    counted = found.measured.get("parameters")
    size = f", {format_count(counted)} parameters" if counted else ""
    model = plain(found.model.rpartition("/")[2])
    lines = [
        f"# {model}: probably a {found.task.name} ({found.task.why}){size}.",
        f"# Written by edgeopt {__version__} init: all of it is yours to change. Run it: edgeopt convert {found.name}",
        f"# yaml-language-server: $schema={found.schema}",
        f"model: {scalar(found.model)}",
        *([f"weights: {scalar(found.weights)}"] if found.weights else []),
        "# It takes:",
        *(f"#   {plain(_told(spec))}" for spec in found.inputs),
        "# It gives:",
        *(f"#   {plain(str(spec))}" for spec in found.outputs),
        "",
        *_data(found),
        "",
        *_metric(found),
        "",
        *_steps(found),
        "",
        "target: host # this machine; another one: {base: raspberry-pi-5, ssh: user@host}; see: edgeopt targets list",
        "",
        *_budget(found),
        "prefer: latency p50 # or size, peak memory: what decides among those inside the budget",
    ]
    return "\n".join(lines) + "\n"


def data_file(recipe_name: str, drawn: Sequence[tuple[TensorSpec, Sequence[int]]]) -> str:
    """The Python file that draws inputs. `drawn` is what each is, all sizes known, and which axes were guessed."""
    count = max(8, *(2 * int(spec.shape[0]) for spec, _ in drawn))
    lines = [
        f'"""Inputs for {recipe_name}: random numbers of the right shape.',
        "",
        "They tell how long the model takes, and nothing of how right it is. For samples of your own, see the recipe.",
        '"""',
        "",
        "import numpy as np",
        "",
        f"COUNT = {count}",
        "",
        "",
        "def timing():",
        '    """An array for each input, samples along the first axis."""',
        "    draw = np.random.default_rng(0)",
        "    return {",
    ]
    for spec, guessed in drawn:
        size = ", ".join(["COUNT", *map(str, spec.shape[1:])]) + ("," if len(spec.shape) == 1 else "")
        note = [f"sizes {', '.join(str(spec.shape[axis]) for axis in guessed)} are a guess"] if guessed else []
        if spec.dtype.startswith("float"):
            value = f"draw.standard_normal(({size}))"
        else:
            value = f"draw.integers(0, 2, ({size}))"
            note.append("0 and 1, which every vocabulary has")
        comment = f"  # {'; '.join(note)}" if note else ""
        lines.append(f'        {json.dumps(spec.name)}: {value}.astype("{spec.dtype}"),{comment}')
    return "\n".join([*lines, "    }", ""])


def scalar(text: str) -> str:
    """Text as YAML: plain where that reads as the same text, else quoted."""
    try:
        if yaml.parse(f"a: {text}\n", "").value == {"a": text} and "\n" not in text:
            return text
    except InputError:
        pass
    return json.dumps(text)


def _told(spec: TensorSpec) -> str:
    kind = guess.layout(spec)
    return f"{spec}" + (f"   probably images, {kind}" if kind else "")


def _data(found: Found) -> Iterator[str]:
    samples = found.samples
    expected = ", ".join(spec.name for spec in found.inputs)
    if samples is None:
        yield "# Random inputs, drawn by a file beside this one. They tell times, and not how right a candidate is."
        yield "data:"
        yield f"  timing: {found.data_file}:timing"
        yield f"# With samples of your own, write these lines instead. In the .npz: {plain(expected)}, samples along"
        yield "# the first axis, and `labels` (class indices) if you have them."
        yield "# data:"
        yield "#   calibration: {from: samples.npz, part: first 30 %, samples: 300}"
        yield "#   validation: {from: samples.npz, part: last 70 %}"
        yield f"# preprocess: {_usual(found)} # (x - mean) / std, where that is not done yet"
        return
    arrays = ", ".join(f"{name}: {dtype}{list(shape)}" for name, (shape, dtype) in samples.arrays.items())
    labels = "with labels" if samples.labels else "without labels"
    yield f"# {samples.count} samples {labels}, {plain(arrays)}."
    yield "data:"
    location = scalar(samples.location)
    location = json.dumps(samples.location) if set(samples.location) & set(",{}[]") else location
    if samples.count < FEW:
        yield "  # They are few: those that calibrate also validate. Some hundreds would tell more."
        yield f"  calibration: {location}"
        yield f"  validation: {location}"
    else:
        yield f"  calibration: {{from: {location}, part: first 30 %, samples: 300}} # int8 takes its ranges from these"
        yield f"  validation: {{from: {location}, part: last 70 %}} # these judge, and are what is timed"
    yield "  # train: images.npz # what pruning and distilling train on; labels are not needed"
    written = _preprocess(samples.preprocess)
    if samples.why:
        yield f"# {samples.why}"
    yield (
        f"preprocess: {written}"
        if written
        else f"# preprocess: {_usual(found)} # (x - mean) / std, if that is not done yet"
    )


def _usual(found: Found) -> str:
    """What is often done to samples of such inputs, as an example."""
    is_color = any(guess.layout(spec) == "NCHW" and spec.shape[1] == 3 for spec in found.inputs)
    return IMAGENET if is_color else "{mean: 127.5, std: 127.5}"


def _preprocess(value: Preprocess) -> str:
    def numbers(values: Sequence[float]) -> str:
        told = [f"{number:g}" for number in values]
        return told[0] if len(told) == 1 else f"[{', '.join(told)}]"

    parts = [f"{key}: {numbers(getattr(value, key))}" for key in ("mean", "std") if getattr(value, key)]
    if value.transpose:
        parts.insert(0, f"transpose: [{', '.join(map(str, value.transpose))}]")
    return f"{{{', '.join(parts)}}}" if parts else ""


def _metric(found: Found) -> Iterator[str]:
    about = {
        "top1": "the share of samples whose best class is their label",
        "agreement": "the share of samples with the same best class as the original's",
        "sqnr": "signal to noise against the original's outputs, in dB",
    }
    if found.samples is None:
        for name in dict.fromkeys((found.task.metric, found.task.metric_without_labels)):
            yield f"# metric: {name} # with samples: {about[name]}"
        return
    metric = found.task.metric if found.samples.labels else found.task.metric_without_labels
    yield f"metric: {metric} # {about[metric]}"


def _steps(found: Found) -> Iterator[str]:
    yield "# A list tries each alternative, and every way through the steps is a candidate."
    yield "steps:"
    for option in found.training:
        yield f"  # - {option.written} # {option.about}{_off(option)}"
    for option in found.quantize:
        yield f"  {'# ' if option.off else ''}- {option.written} # {option.about}{_off(option)}"
    yield "  - compile:"
    for option in found.compile:
        note = "; ".join(filter(None, [option.about, option.off]))
        yield f"      {'# ' if option.off else ''}- {option.written}" + (f" # {note}" if note else "")


def _off(option: Option) -> str:
    return f"; {option.off}" if option.off else ""


def _budget(found: Found) -> Iterator[str]:
    measured = found.measured
    latency = measured["latency_ns"] or {}
    told = [f"{name} {format_time(latency[name]['value'])}" for name in ("p50", "p95") if latency.get(name)]
    yield f"# Measured shortly, {found.surroundings}:"
    memory, size = measured["peak_memory_bytes"], measured["artifact"]["size_bytes"]
    told = [f"latency {' and '.join(told)}"] if told else []
    told += [f"peak memory {format_size(memory)}"] if memory else []
    yield f"#   the original: {', '.join([*told, f'size {format_size(size)}'])}"
    if found.samples and found.samples.top1 is not None:
        yield f"#   right on {format_fraction(found.samples.top1)} of the samples tried"
    yield "# The limits below are those with some room. Write what your product needs instead."
    yield "budget:"
    name = next((name for name in ("p95", "p50") if latency.get(name)), None)
    if name:
        yield f"  latency {name}: {_above(latency[name]['value'] * ROOM_LATENCY, _TIMES)}"
    else:
        yield "  # latency p95: 10 ms"
    if memory:
        yield f"  peak memory: {_above(memory * ROOM_MEMORY + MEMORY_BYTES, _SIZES)}"
    yield f"  size: {_above(size * ROOM_SIZE, _SIZES)}"
    if found.samples is None:
        yield "  # accuracy drop: 1 % # with samples"
    elif found.task.metric_without_labels == "sqnr" and not found.samples.labels:
        yield "  sqnr: 20 dB # against the original's outputs"
    else:
        yield "  accuracy drop: 1 %"


_TIMES = (("s", 1e9), ("ms", 1e6), ("us", 1e3))
_SIZES = (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10))


def _above(number: float, scales: Sequence[tuple[str, float]]) -> str:
    """Rounded up to two digits, in the first unit that it reaches."""
    unit, scale = next(((unit, scale) for unit, scale in scales if number >= scale), scales[-1])
    shown = number / scale
    step = 10.0 ** (math.floor(math.log10(shown)) - 1)
    return f"{round(math.ceil(shown / step - 1e-9) * step, 6):g} {unit}"
