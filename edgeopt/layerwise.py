"""Where, inside, one model computes something else than another: layers in the order of the graph, with their noise.

Tensors of the two are matched by name where names are kept, as from ONNX to Q/DQ ONNX and to OpenVINO; elsewhere by
what they hold on a few samples: two tensors belong together where each is most like the other. What has no counterpart
is counted, not guessed.

The noise of a layer is the power of the difference over the power of the signal, its signal to noise ratio the same in
dB. `added` is by how much that exceeds the noisiest of the layers before it: a layer that only passes on what it got
adds nothing. It knows nothing of how a layer's noise changes the outputs: `edgeopt sensitivity` measures that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import tracing
from edgeopt.artifact import TensorSpec
from edgeopt.errors import StageError
from edgeopt.measuring.quality import decibels
from edgeopt.samples import Samples, adapt
from edgeopt.tracing import Operation, Trace
from edgeopt.worker import Channel

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LIKE = 2  # runs of the models, on whose tensors they are matched
ALIKE = 0.7  # correlation below which two tensors are not taken for the same: half the power is noise there
BY_NAME, BY_VALUE = "name", "value"


@dataclass(frozen=True)
class Layer:
    """A layer of a: an operation with arithmetic, with the tensor that it writes, or a later one that only passes it
    on; `other` is the tensor of b. `before` are the layers that it reads, by position."""

    operation: Operation
    tensor: str
    other: str
    before: tuple[int, ...]


def run(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Worker's job: `args` holds a and b, each with format, main, runtime, inputs (of the artifact) and samples (a
    folder), further count and threads.

    Returns matched_by ("name" or "value"), samples, of (layers of a), unlike (titles of those whose shape is another in
    b), worst (the tensor of the layer that adds most noise) and layers as `_told` gives them. Raises StageError where
    the two cannot be run beside each other.
    """
    channel.progress(None, "loading both with their inner tensors")
    a, b = (
        tracing.find(args[s]["format"]).trace(Path(args[s]["main"]), args[s]["runtime"], args["threads"]) for s in "ab"
    )
    feeds = _Feeds(args)
    first = [(a.run(one), b.run(other)) for one, other in feeds.take(LIKE)]
    by, pairs = matched(a, b, first)
    layers = chain(a.operations, pairs)
    same = {index for index, one in enumerate(layers) if all(x[one.tensor].size == y[one.other].size for x, y in first)}
    signal, noise = [0.0] * len(layers), [0.0] * len(layers)
    for number, (one, other) in enumerate(feeds):
        channel.progress(number / len(feeds), "running both layer by layer")
        x, y = a.run(one), b.run(other)
        for index in same:
            of_signal, of_noise = _energies(x[layers[index].tensor], y[layers[index].other])
            signal[index] += of_signal
            noise[index] += of_noise
    told = _told(layers, same, signal, noise)
    worst = max(told, key=lambda one: one["added"], default=None)
    return {
        "matched_by": by,
        "samples": len(feeds) * feeds.batch,
        "of": sum(not one.passes for one in a.operations),
        "unlike": [layers[index].operation.title for index in range(len(layers)) if index not in same],
        "worst": worst["tensor"] if worst and worst["added"] > 0 else None,
        "layers": told,
    }


def matched(
    a: Trace, b: Trace, first: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]
) -> tuple[str, dict[str, str]]:
    """Tensors of a to those of b, and what most of them were matched by. `first` are some runs of both."""
    ours, theirs = ([run[side] for run in first] for side in (0, 1))
    there = {one.tensor for one in b.operations}
    named = {one.tensor: one.tensor for one in a.operations if one.tensor in there & ours[0].keys() & theirs[0].keys()}
    if 2 * len(chain(a.operations, named)) < sum(not one.passes for one in a.operations):
        named = {}  # the few may be there by chance
    unnamed = [[{name: run[name] for name in run.keys() - named.keys()} for run in runs] for runs in (ours, theirs)]
    return BY_NAME if named else BY_VALUE, {**alike(*unnamed), **named}


def alike(ours: Sequence[Mapping[str, Array]], theirs: Sequence[Mapping[str, Array]]) -> dict[str, str]:
    """The tensors of two models that are each most like the other, by correlation over the same runs."""
    import numpy as np

    groups, others = _by_size(ours), _by_size(theirs)
    pairs = {}
    for size in groups.keys() & others.keys():
        names, vectors = zip(*groups[size].items(), strict=True)
        near, candidates = zip(*others[size].items(), strict=True)
        found = np.stack(vectors) @ np.stack(candidates).T
        best, back = found.argmax(axis=1), found.argmax(axis=0)
        for row, column in enumerate(best):
            if back[column] == row and found[row, column] >= ALIKE:
                pairs[names[row]] = near[column]
    return pairs


def chain(operations: Sequence[Operation], pairs: Mapping[str, str]) -> list[Layer]:
    """The layers that have a counterpart, in the order of the graph."""
    owner: dict[str, Operation] = {}  # the operation whose numbers a tensor holds
    shown: dict[str, str] = {}  # the first tensor of each that has a counterpart
    for one in operations:
        passed = owner.get(one.reads[0]) if one.passes else one
        if passed is not None:
            owner[one.tensor] = passed
            if one.tensor in pairs:
                shown.setdefault(passed.tensor, one.tensor)
    places = {name: place for place, name in enumerate(shown)}
    before: dict[str, frozenset[int]] = {}
    layers = {}
    for one in operations:
        reached: set[int] = set()
        for name in one.reads:
            source = owner.get(name)
            if source is not None and source.tensor in places:
                reached.add(places[source.tensor])
            elif name in before:
                reached |= before[name]
        before[one.tensor] = frozenset(reached)
        if one.tensor in places:
            tensor = shown[one.tensor]
            layers[places[one.tensor]] = Layer(one, tensor, pairs[tensor], tuple(sorted(reached)))
    return [layers[place] for place in sorted(layers)]


class _Feeds:
    """The samples as feeds of both models, `batch` at once."""

    def __init__(self, args: Mapping[str, Any]) -> None:
        self._sides = [
            (Samples(Path(args[side]["samples"])), [TensorSpec.from_json(spec) for spec in args[side]["inputs"]])
            for side in "ab"
        ]
        fixed = {specs[0].shape[0] for _, specs in self._sides if specs and specs[0].shape}
        sizes = {size for size in fixed if isinstance(size, int)}
        if len(sizes) > 1:
            raise StageError(f"one takes {min(sizes)} samples at once, the other {max(sizes)}")
        self.batch = sizes.pop() if sizes else 1
        self._runs: int = min(args["count"], len(self._sides[0][0])) // self.batch
        if not self._runs:
            raise StageError(f"they take {self.batch} samples at once, and there are fewer")

    def __len__(self) -> int:
        return self._runs

    def __iter__(self) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
        return self.take(self._runs)

    def take(self, runs: int) -> Iterator[tuple[Mapping[str, Array], Mapping[str, Array]]]:
        for start in range(0, min(runs, self._runs) * self.batch, self.batch):
            one, other = (adapt(samples.batch(start, start + self.batch), specs) for samples, specs in self._sides)
            yield one, other


def _by_size(runs: Sequence[Mapping[str, Array]]) -> dict[int, dict[str, Array]]:
    """Tensors by how many numbers they hold, each less its mean and of length 1; without constant ones."""
    import numpy as np

    groups: dict[int, dict[str, Array]] = {}
    for name in runs[0]:
        if not all(name in run for run in runs):
            continue
        value = np.concatenate([run[name].ravel() for run in runs])
        value = value - value.mean()
        length = float(np.linalg.norm(value))
        if np.isfinite(length) and length > 0:
            groups.setdefault(value.size, {})[name] = value / length
    return groups


def _energies(wanted: Array, found: Array) -> tuple[float, float]:
    """Sums of squares of the signal and of the difference."""
    import numpy as np

    value = wanted.ravel().astype(np.float64)
    return float(np.square(value).sum()), float(np.square(value - found.ravel()).sum())


def _told(
    layers: Sequence[Layer], same: set[int], signal: Sequence[float], noise: Sequence[float]
) -> list[dict[str, Any]]:
    """title, operator, tensor, other (the tensor of b), sqnr_db (None where nothing differs), added (noise over signal,
    beyond that of the layers before) and share (of all that is added)."""
    ratios = {index: noise[index] / signal[index] for index in same if signal[index] > 0}
    added = {
        index: max(0.0, ratio - max((ratios[place] for place in layers[index].before if place in ratios), default=0.0))
        for index, ratio in ratios.items()
    }
    whole = sum(added.values())
    return [
        {
            "title": layers[index].operation.title,
            "operator": layers[index].operation.operator,
            "tensor": layers[index].tensor,
            "other": layers[index].other,
            "sqnr_db": decibels(signal[index], noise[index]),
            "added": added[index],
            "share": added[index] / whole if whole else 0.0,
        }
        for index in sorted(ratios)
    ]
