"""Two artifacts or models side by side: what they compute on the same samples, layer by layer where that can be seen,
and what they cost.

The first is the reference: all noise is the second's. Both run here, each in a process of its own, in the runtime that
its file is for; a source that is no artifact yet (a torch factory, Keras, ...) is brought into ONNX first. Nothing is
compared on numbers that mean nothing: without samples, golden or given, random ones have to be asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import __version__, backends, differences, formats, tracing, worker
from edgeopt.artifact import TensorSpec
from edgeopt.bundle import MANIFEST, Bundle
from edgeopt.errors import EdgeoptError, InputError, MissingDependency, RegressionError, StageError
from edgeopt.inspection import inspect
from edgeopt.kit import measure, subjects
from edgeopt.kit.subjects import Subject
from edgeopt.measuring import machine, quality, session
from edgeopt.recipe import locate
from edgeopt.samples import Preprocess, Samples, write_samples
from edgeopt.statistics import paired_drop
from edgeopt.worker import Limits

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SCHEMA = 1
LAYER_SAMPLES = 32
LIMITS = Limits(seconds=1800.0)
SIDES = ("a", "b")

Tell = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Request:
    """What to compare and on what. `samples` is how many are drawn of `data`, None for all.

    `preprocess` is for bare models: a bundle brings its own; where neither it nor data is given, a bare model takes
    that of the bundle beside it. `weights` are those of a torch factory. `latency` says whether both are timed.
    """

    a: str
    b: str
    data: str | None = None
    samples: int | None = None
    random: bool = False
    preprocess: Preprocess = field(default_factory=Preprocess)
    weights: str | None = None
    threads: int = 1
    latency: bool = True
    tolerances: tuple[differences.Tolerance, ...] = ()


def compare(request: Request, tell: Tell = lambda *_: None) -> dict[str, Any]:
    """Compare both. Returns the document (schema "compare"); its exit code is `exit_code`.

    Raises InputError where paths, data or signatures do not go together, and what keeps one of them from running.
    """
    if request.data is not None:
        measure.check_data(request.data)
    with tempfile.TemporaryDirectory(prefix="edgeopt-compare-") as folder:
        return _Compare(request, Path(folder), tell).run()


def exit_code(document: Mapping[str, Any]) -> int:
    """7 where a difference is beyond its tolerance; a difference alone is no error."""
    return 0 if all(one["passed"] for one in document["tolerances"]) else RegressionError.exit_code


class _Compare:
    """One comparison in its folder of samples, outputs and logs."""

    def __init__(self, request: Request, folder: Path, tell: Tell) -> None:
        self.request = request
        self.folder = folder
        self.tell = tell
        self.notes: list[str] = []

    def run(self) -> dict[str, Any]:
        pair, samples, told = self._prepare()
        self._check_signatures(pair)
        quality_of = [self._run(side, one, where) for side, one, where in zip(SIDES, pair, samples, strict=True)]
        outputs = self._outputs(pair)
        accuracy = self._accuracy(quality_of)
        drop = accuracy["drop"] if accuracy else None
        values = differences.values(outputs, drop)
        judged = [tolerance.judged(values) for tolerance in self.request.tolerances]
        facts = [self._facts(one) for one in pair]
        return {
            "schema": SCHEMA,
            "edgeopt": __version__,
            "a": facts[0],
            "b": facts[1],
            "samples": told,
            "outputs": outputs,
            "accuracy": accuracy,
            "layers": self._layers(pair, samples),
            "operators": _operators(facts),
            "latency": self._latency(pair, samples) if self.request.latency else None,
            "tolerances": judged,
            "notes": self.notes,
        }

    def _prepare(self) -> tuple[list[Subject], list[Path], dict[str, Any]]:
        """Both with their signatures, the folder of samples of each, and what is told of the samples."""
        names = (self.request.a, self.request.b)
        ready = [None if _is_source(name) else subjects.read([name], self.request.preprocess)[0] for name in names]
        bundles = [one.bundle for one in ready if one is not None and one.bundle is not None]
        bare = self._of_bare(bundles)
        preprocess = [one.preprocess if one and one.bundle else bare for one in ready]
        if len(set(preprocess)) > 1:
            self.notes.append("the two preprocess samples in different ways, each in its own")
        folders, told = self._samples(preprocess, bundles)
        pair = []
        for place, (name, one) in enumerate(zip(names, ready, strict=True)):
            found = self._imported(name, place, folders[place] if folders else None) if one is None else one
            found = found if found.bundle else self._with_signature(found, place)
            pair.append(replace(found, preprocess=preprocess[place]))
        if not folders:
            folders, told = self._drawn(pair[0])
        return [self._laid_out(one, where) for one, where in zip(pair, folders, strict=True)], folders, told

    def _of_bare(self, bundles: Sequence[Bundle]) -> Preprocess:
        given = self.request.preprocess
        if given != Preprocess() or len(bundles) != 1 or bundles[0].preprocess == given:
            return given
        self.notes.append("the bare model is given what the bundle's preprocessing makes of the samples")
        return bundles[0].preprocess

    def _samples(
        self, preprocess: Sequence[Preprocess], bundles: Sequence[Bundle]
    ) -> tuple[list[Path], dict[str, Any]]:
        """A folder for each, empty where random samples have to be drawn for the signature, which is not known yet."""
        folders = {one: self.folder / f"samples-{place}" for place, one in enumerate(dict.fromkeys(preprocess))}
        if self.request.data is not None:
            self.tell("reading samples", None)
            for one, out in folders.items():
                out.mkdir()
                args = {
                    "location": locate(self.request.data, Path.cwd()),
                    "samples": self.request.samples,
                    "seed": 0,
                    "preprocess": one.to_json(),
                    "out": str(out),
                }
                meta = self._call("data", "edgeopt.data:prepare", args)
                if one == Preprocess() and any("int" in dtype for _, dtype in meta["inputs"].values()):
                    self.notes.append(
                        "whole numbers go in as they are: --mean and --std preprocess those of bare models"
                    )
            told = {"source": "data", "location": self.request.data, "count": meta["count"], "labels": meta["labels"]}
        elif bundles:
            golden = bundles[0].golden()[0]
            for one, out in folders.items():
                out.mkdir()
                write_samples(out, golden, None, one)
            count = len(next(iter(golden.values())))
            told = {"source": "golden", "location": str(bundles[0].folder), "count": count, "labels": False}
        elif self.request.random:
            return [], {}
        else:
            raise InputError(
                "there are no samples to compare them on, and neither is a bundle with golden ones",
                remedy="Give --data samples.npz, or --random for numbers that say little of real use.",
            )
        return [folders[one] for one in preprocess], told

    def _drawn(self, one: Subject) -> tuple[list[Path], dict[str, Any]]:
        out = self.folder / "samples"
        out.mkdir()
        inputs = [spec.to_json() for spec in one.artifact.inputs]
        count = self._call("draw", "edgeopt.kit.jobs:draw", {"inputs": inputs, "out": str(out)})["count"]
        self.notes.append("random numbers, not samples: differences on real ones may be smaller or larger")
        return [out, out], {"source": "random", "location": None, "count": count, "labels": False}

    def _imported(self, name: str, place: int, samples: Path | None) -> Subject:
        """A source model as ONNX, called as it was given."""
        self.tell(f"bringing {name} into ONNX", None)
        out = self.folder / f"model-{place}"
        out.mkdir()
        location = locate(name, Path.cwd())
        for tool in formats.find(formats.format_of(location)).tools():
            if backends.version(tool) is None:
                raise MissingDependency(f"{name} is read with {tool}", remedy=f"Install it: pip install {tool}")
        args = {
            "model": location,
            "weights": locate(self.request.weights, Path.cwd()) if self.request.weights else None,
            "samples": str(samples) if samples else None,
            "out": str(out),
        }
        try:
            main = self._call(f"import-{place}", "edgeopt.stages.import_model:run", args)["produced"]["main"]
        except InputError as error:
            if "preprocess" in (error.remedy or ""):
                error.remedy = "Give --mean and --std, with the numbers that the model was trained with."
            raise
        self.notes.append(f"{name} is brought into ONNX, and run in onnxruntime")
        return replace(subjects.read([str(out / main)], self.request.preprocess)[0], name=name)

    def _with_signature(self, one: Subject, place: int) -> Subject:
        self.tell(f"loading {one.name}", None)
        args = {"backend": one.backend, "main": str(one.main)}
        found = self._call(f"signature-{place}", "edgeopt.kit.jobs:signature", args)
        return one.with_signature(
            *([TensorSpec.from_json(spec) for spec in found[side]] for side in ("inputs", "outputs"))
        )

    def _laid_out(self, one: Subject, samples: Path) -> Subject:
        """A bare model that takes images channels last where the samples have them first: its layout is told."""
        if one.bundle is not None:
            return one
        given = list(Samples(samples).batch(0, 1).values())
        inputs = tuple(
            replace(spec, layout="NHWC")
            if len(spec.shape) == value.ndim == 4 and _only_moved(spec, value.shape)
            else spec
            for spec, value in zip(one.artifact.inputs, given)
        )
        return one.with_signature(inputs, one.artifact.outputs)

    def _check_signatures(self, pair: Sequence[Subject]) -> None:
        """As many inputs and outputs each. Notes where they are matched by order, because names differ."""
        for what in ("inputs", "outputs"):
            ours, theirs = ([spec.name for spec in getattr(one.artifact, what)] for one in pair)
            if len(ours) != len(theirs):
                raise InputError(
                    f"different signatures: {pair[0].name} has {len(ours)} {what} ({', '.join(ours)}), "
                    f"{pair[1].name} {len(theirs)} ({', '.join(theirs)})",
                    remedy="Give two forms of one model.",
                )
            if set(ours) != set(theirs):
                pairs = ", ".join(f"{one} and {other}" for one, other in zip(ours, theirs))
                self.notes.append(f"{what} are matched by their order, because their names differ: {pairs}")

    def _run(self, side: str, one: Subject, samples: Path) -> dict[str, Any]:
        """Every sample through the artifact: outputs in the folder outputs-<side>."""
        self.tell(f"running {one.name}", None)
        out = self.folder / f"outputs-{side}"
        out.mkdir()
        artifact = one.artifact
        scores = bool(artifact.outputs) and len(artifact.outputs[0].shape) == 2
        has_labels = Samples(samples).has_labels
        args = {
            "backend": one.backend,
            "main": str(one.main),
            "runtime": dict(artifact.runtime),
            "threads": self.request.threads,
            "inputs": [spec.to_json() for spec in artifact.inputs],
            "outputs": [spec.to_json() for spec in artifact.outputs],
            "samples": str(samples),
            "metric": "top1" if has_labels and scores else "sqnr",
            "out": str(out),
        }
        try:
            return self._call(f"run-{side}", "edgeopt.measuring.quality:run", args)
        except EdgeoptError as error:
            error.where = error.where or one.name
            raise

    def _outputs(self, pair: Sequence[Subject]) -> list[dict[str, Any]]:
        self.tell("comparing outputs", None)
        ours, theirs = ([spec.name for spec in one.artifact.outputs] for one in pair)
        found = []
        for index, name in enumerate(ours):
            other = theirs.index(name) if set(ours) == set(theirs) else index
            wanted, given = (self._output(side, place) for side, place in zip(SIDES, (index, other), strict=True))
            if given.shape != wanted.shape and given.ndim == 4:
                given = given.transpose(0, 3, 1, 2)
            if given.shape != wanted.shape:
                shapes = f"{list(wanted.shape[1:])} a sample, and that of {pair[1].name} {list(given.shape[1:])}"
                raise InputError(f"different signatures: output {name} of {pair[0].name} has {shapes}")
            one = {"name": name, "other": theirs[other], "shape": list(wanted.shape[1:])}
            found.append({**one, **differences.of_output(wanted, given)})
        return found

    def _output(self, side: str, index: int) -> Array:
        import numpy as np

        path = self.folder / f"outputs-{side}" / f"outputs-{index}.npy"
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        return found

    def _accuracy(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Of both, where there are labels, and the drop over the same samples."""
        if any(one["hits"] is None for one in found):
            return None
        hits = [self.folder / f"outputs-{side}" / quality.HITS for side in SIDES]
        drop = paired_drop(*quality.paired_counts(*hits))
        return {
            "metric": found[0]["metric"],
            "a": found[0]["value"],
            "b": found[1]["value"],
            "drop": drop.value,
            "drop_low": drop.low,
            "drop_high": drop.high,
        }

    def _facts(self, one: Subject) -> dict[str, Any]:
        """What it is: as `edgeopt inspect` tells, as far as its format can be read."""
        self.tell(f"inspecting {one.name}", None)
        artifact = one.artifact
        try:
            told = inspect(str(one.main), weights=None, data=None, base=Path.cwd())
        except EdgeoptError as error:
            self.notes.append(f"{one.name}: its operators are not known: {error.message}")
            told = {}
        return {
            "name": one.name,
            "kind": "bundle" if one.bundle else "model",
            "format": artifact.format,
            "backend": one.backend,
            "precision": one.precision or told.get("precision"),
            "size_bytes": artifact.size_bytes,
            "parameters": told.get("parameters"),
            "operators": told.get("operators"),
            "digest": artifact.digest,
        }

    def _layers(self, pair: Sequence[Subject], samples: Sequence[Path]) -> dict[str, Any]:
        """As `edgeopt.layerwise:run` gives it with `reason` None, or the reason why there is nothing."""
        strange = [one.name for one in pair if one.artifact.format not in tracing.TRACERS]
        if strange:
            known = ", ".join(tracing.TRACERS)
            return {"reason": f"{strange[0]}: inner tensors are seen in {known} alone", "layers": []}
        args = {
            side: {
                "format": one.artifact.format,
                "main": str(one.main),
                "runtime": dict(one.artifact.runtime),
                "inputs": [spec.to_json() for spec in one.artifact.inputs],
                "samples": str(where),
            }
            for side, one, where in zip(SIDES, pair, samples, strict=True)
        }
        try:
            more = {"count": LAYER_SAMPLES, "threads": self.request.threads}
            return {"reason": None, **self._call("layers", "edgeopt.layerwise:run", {**args, **more})}
        except (StageError, MissingDependency) as error:
            return {"reason": error.message, "layers": []}

    def _latency(self, pair: Sequence[Subject], samples: Sequence[Path]) -> dict[str, Any]:
        """Both in one session, in turn, the first with a twin of itself."""
        candidates = [
            session.Candidate(
                id=side,
                artifact=one.artifact.digest,
                backend=one.backend,
                folder=one.folder,
                main=one.artifact.main,
                inputs=one.artifact.inputs,
                runtime=one.artifact.runtime,
                threads=self.request.threads,
                size_bytes=one.artifact.size_bytes,
                samples=where,
            )
            for side, one, where in zip(SIDES, pair, samples, strict=True)
        ]
        result = session.run_session(
            candidates,
            session.SessionOptions(samples=samples[0]),
            self.folder / "log",
            lambda kind, _, fraction: self.tell("measuring in turn" if kind == "round" else "warming up", fraction),
            machine=machine.fingerprint(),
            observe=machine.state,
        )
        told = {side: _timed(outcome) for side, outcome in result.outcomes.items()}
        speedup, twin = result.outcomes["b"].speedup, result.groups[0].twin
        return {
            **told,
            "threads": self.request.threads,
            "machine": result.machine.to_json(),
            "twin": twin.to_json() if twin else None,
            "speedup": {**speedup.speedup.to_json(), "verdict": speedup.verdict, "reason": speedup.reason}
            if speedup
            else None,
        }

    def _call(self, log: str, function: str, args: Mapping[str, Any]) -> dict[str, Any]:
        return worker.call(
            function,
            args,
            log=self.folder / "log" / f"{log}.log",
            limits=LIMITS,
            progress=lambda fraction, text: self.tell(text, fraction),
        )


def _is_source(name: str) -> bool:
    """Whether it has to be brought into ONNX before anything runs it."""
    path = Path(name)
    if path.is_dir():
        return not any((path / file).exists() for file in (MANIFEST, subjects.BEST, *subjects.RUN_FILES))
    if path.suffix.lower() in subjects.SUFFIXES or path.name == MANIFEST:
        return False
    try:
        formats.format_of(name)
    except InputError:
        return False
    return True


def _only_moved(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """Whether samples of a shape (samples, channels, ...) fit once their channels are last, and only then."""
    wanted, given = tuple(spec.shape[1:]), tuple(shape[1:])
    return wanted != given and wanted == (*given[1:], given[0])


def _operators(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[int]] | None:
    """The counts in both of the operators whose counts differ; None where they are not known, or are of two formats,
    which call them otherwise."""
    ours, theirs = (one["operators"] for one in facts)
    if ours is None or theirs is None or facts[0]["format"] != facts[1]["format"]:
        return None
    counts = {name: [ours.get(name, 0), theirs.get(name, 0)] for name in sorted(ours.keys() | theirs.keys())}
    return {name: both for name, both in counts.items() if both[0] != both[1]}


def _timed(outcome: session.Outcome) -> dict[str, Any]:
    measured = outcome.measurement
    return {
        "latency_ns": measured.latency.to_json() if measured else None,
        "load_ns": measured.load_ns if measured else None,
        "peak_memory_bytes": measured.peak_memory_bytes if measured else None,
        "runtime_version": measured.runtime_version if measured else None,
        "warnings": list(measured.warnings) if measured else [],
        "error": outcome.error.to_json() if outcome.error else None,
    }
