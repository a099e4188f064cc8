"""`bench`: proves bundles by their golden samples, takes accuracy on this device, then times all in one session.

Nothing is timed before every bundle has computed its golden samples. The document that comes out is what `--json`
prints; raw samples of each measurement go to `--output`, a line each. This module knows nothing of budgets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeopt import __version__, worker
from edgeopt.artifact import TensorSpec
from edgeopt.errors import CorruptArtifact, EdgeoptError, InputError, MissingDependency, StageError, WorkerCrashed
from edgeopt.kit import alone, rows, subjects
from edgeopt.kit.rows import Alone, Prepared
from edgeopt.kit.subjects import Subject
from edgeopt.measuring import machine, quality, session
from edgeopt.nearby import nearby
from edgeopt.samples import Preprocess, write_samples
from edgeopt.statistics import paired_drop
from edgeopt.worker import Limits

SCHEMA = 1
ROUNDS, BLOCK_NS, WARM_UP_NS = 16, 100_000_000, 5_000_000_000
QUICK_ROUNDS, QUICK_BLOCK_NS, QUICK_WARM_UP_NS = 8, 25_000_000, 1_000_000_000
LIMITS = Limits(seconds=600.0)  # for proving and loading; accuracy on many samples has no limit
PLACES = ("top1", "top5")
RANDOM = "its inputs are random numbers: times may differ on real data; give samples with --data"
WITHOUT_LABELS = "Leave the labels out of the data: times alone are measured then."

Tell = Callable[[str, Optional[float]], None]


@dataclass(frozen=True)
class Request:
    """What to measure and how. `samples` is how many are drawn of `data`, None for all.

    `preprocess` is for bare models: a bundle brings its own. `output` is a new file for the raw samples. `batches` are
    the sizes of a batch curve, `sustained_ns` is how long each is run back to back; none where nothing is said.
    """

    paths: Tuple[str, ...]
    data: Optional[str] = None
    samples: Optional[int] = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    threads: int = 1
    rounds: Optional[int] = None
    quick: bool = False
    output: Optional[Path] = None
    batches: Tuple[int, ...] = ()
    sustained_ns: Optional[int] = None


def bench(request: Request, tell: Tell = lambda *_: None) -> Dict[str, Any]:
    """Measure everything. Returns the document; its exit code is `exit_code`.

    Raises InputError for paths and data that are wrong, CorruptArtifact for a bundle that is damaged or does not
    compute here what it should, MissingDependency, and whatever went wrong where a single path was given.
    """
    if importlib.util.find_spec("numpy") is None:
        raise MissingDependency("bench needs numpy, which is not installed", remedy="Install it: pip install numpy")
    found = subjects.read(request.paths, request.preprocess)
    if request.output is not None:
        subjects.check_new(request.output)
    if request.data is not None:
        check_data(request.data)
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-bench-"))
    keep: List[Path] = []
    try:
        return _Bench(request, folder, tell, keep).run(found)
    finally:
        for path in folder.iterdir():
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def exit_code(document: Mapping[str, Any]) -> int:
    """0 where at least one was measured, 4 where all failed."""
    return 0 if any(found["error"] is None for found in document["measurements"]) else StageError.exit_code


class _Bench:
    """One bench in its folder of samples, outputs and logs; what is put into `keep` outlives it."""

    def __init__(self, request: Request, folder: Path, tell: Tell, keep: List[Path]) -> None:
        self.request = request
        self.folder = folder
        self.tell = tell
        self.keep = keep
        self.logs = folder / "log"
        self.data: Dict[Preprocess, Tuple[Path, Mapping[str, Any]]] = {}

    def run(self, found: Sequence[Subject]) -> Dict[str, Any]:
        prepared = [self._prepare(index, subject) for index, subject in enumerate(found)]
        has_labels = any(meta["labels"] for _, meta in self.data.values())
        qualities = self._qualities(prepared, has_labels) if self.request.data else {}
        result = self._session(prepared)
        keys = list(result.outcomes)
        errors = {key: outcome.error for key, outcome in result.outcomes.items() if outcome.error}
        if any(isinstance(error, WorkerCrashed) for error in errors.values()):  # its remedy names the log
            self.keep.append(self.logs)
        if len(found) == 1 and errors:
            raise errors[keys[0]]
        names = dict(zip(keys, (one.subject.name for one in prepared)))
        more = {key: Alone() if key in errors else self._alone(key, one) for key, one in zip(keys, prepared)}
        baseline, threads = names[result.baseline], self.request.threads
        told = [
            rows.row(one, result.outcomes[key], qualities.get(one.subject.name), more[key], baseline, threads)
            for key, one in zip(keys, prepared)
        ]
        document = {
            "schema": SCHEMA,
            "edgeopt": __version__,
            "machine": result.machine.to_json(),
            "threads": self.request.threads,
            "rounds": self._options(prepared[0].samples).rounds,
            "block_ns": self._options(prepared[0].samples).block_ns,
            "data": self._data_json(),
            "baseline": baseline,
            "sessions": [
                {
                    "measured": [names[key] for key in group.rounds],
                    "twin": group.twin.to_json() if group.twin else None,
                    "disturbance": group.disturbance.to_json(),
                }
                for group in result.groups
            ],
            "measurements": told,
        }
        if self.request.output is not None:
            lines = [
                {
                    "id": one.subject.name,
                    "inputs": one.inputs,
                    **measured.with_warnings(*one.warnings).to_json(),
                    **more[key].to_json(),
                }
                for key, one in zip(keys, prepared)
                if (measured := result.outcomes[key].measurement) is not None
            ]
            _write(self.request.output, lines)
        return document

    def _prepare(self, index: int, subject: Subject) -> Prepared:
        """Prove or load the subject, and find the samples that it is measured on."""
        proof = None
        if subject.bundle is not None:
            self.tell(f"proving {subject.name}", None)
            args = {"bundle": str(subject.folder), "threads": self.request.threads}
            proof = self._call(f"prove-{index}", "edgeopt.bundle:run", args)
        else:
            self.tell(f"loading {subject.name}", None)
            args = {"backend": subject.backend, "main": str(subject.main)}
            with _of(subject.main):
                signature = self._call(f"signature-{index}", "edgeopt.kit.jobs:signature", args)
            subject = subject.with_signature(_specs(signature["inputs"]), _specs(signature["outputs"]))
        inputs = [spec.to_json() for spec in subject.artifact.inputs]
        if self.request.data is not None:
            samples, meta = self._read_data(subject.preprocess)
            with _of(self.request.data):
                self._call(f"fit-{index}", "edgeopt.kit.jobs:fit", {"samples": str(samples), "inputs": inputs})
            return Prepared(subject, samples, "data", proof, tuple(rows.raw_warnings(subject, meta)))
        samples = self.folder / f"samples-{index}"
        samples.mkdir()
        if subject.bundle is not None:
            write_samples(samples, subject.bundle.golden()[0], None, subject.preprocess)
            return Prepared(subject, samples, "golden", proof)
        with _of(subject.main):
            self._call(f"draw-{index}", "edgeopt.kit.jobs:draw", {"inputs": inputs, "out": str(samples)})
        return Prepared(subject, samples, "random", None, (RANDOM,))

    def _read_data(self, preprocess: Preprocess) -> Tuple[Path, Mapping[str, Any]]:
        """The folder of `--data` with this preprocessing, and what `edgeopt.data:prepare` tells of it."""
        if preprocess not in self.data:
            out = self.folder / f"data-{len(self.data)}"
            out.mkdir()
            self.tell("reading samples", None)
            args = {
                "location": self.request.data,
                "samples": self.request.samples,
                "seed": 0,
                "preprocess": preprocess.to_json(),
                "out": str(out),
            }
            self.data[preprocess] = out, self._call("data", "edgeopt.data:prepare", args)
        return self.data[preprocess]

    def _qualities(self, prepared: Sequence[Prepared], has_labels: bool) -> Dict[str, Mapping[str, Any]]:
        """By name: accuracy where there are labels, else agreement with the first. Drops are against the first.

        Empty where there is nothing to tell: outputs that are no class scores, a single subject without labels.
        """
        found: Dict[str, Mapping[str, Any]] = {}
        others = [one.subject for one in prepared if len(one.subject.artifact.outputs[0].shape) != 2]
        if others and has_labels:
            given = f"{others[0].name} gives {others[0].artifact.outputs[0]}"
            raise InputError(
                f"accuracy needs class scores (samples, classes); {given}",
                where=self.request.data,
                remedy=WITHOUT_LABELS,
            )
        if others or (not has_labels and len(prepared) == 1):
            return found
        outs = [self.folder / f"outputs-{index}" for index in range(len(prepared))]
        base: Optional[Mapping[str, Any]] = None
        for index, one in enumerate(prepared):
            outs[index].mkdir()
            args = {
                "backend": one.subject.backend,
                "main": str(one.subject.main),
                "runtime": dict(one.subject.artifact.runtime),
                "threads": self.request.threads,
                "inputs": [spec.to_json() for spec in one.subject.artifact.inputs],
                "outputs": [spec.to_json() for spec in one.subject.artifact.outputs],
                "samples": str(one.samples),
                "metric": rows.metric(one.subject) if has_labels else "agreement",
                "out": str(outs[index]),
                "reference": str(outs[0]) if index and not has_labels else None,
            }
            name = one.subject.name
            try:
                with _of(str(self.request.data)):
                    told = self._call(f"quality-{index}", "edgeopt.measuring.quality:run", args, limits=Limits())
            except (InputError, StageError) as error:
                if has_labels and isinstance(error, InputError):
                    error.remedy = WITHOUT_LABELS
                    raise
                found[name] = {**rows.quality(None, None, None), "error": error.message}
                continue
            recorded = rows.recorded(one.subject)
            drop = None
            if index == 0:
                base = told
            elif told["hits"] is None or base is None:
                pass
            elif not has_labels:
                drop = paired_drop(told["hits"], told["samples"] - told["hits"], 0, 0).to_json()
            elif told["metric"] == base["metric"]:
                drop = paired_drop(*quality.paired_counts(*(outs[i] / quality.HITS for i in (0, index)))).to_json()
            found[name] = rows.quality(told, drop, recorded)
        return found

    def _options(self, samples: Path) -> session.SessionOptions:
        quick = self.request.quick
        rounds = self.request.rounds or (QUICK_ROUNDS if quick else ROUNDS)
        return session.SessionOptions(
            samples=samples,
            rounds=rounds,
            most_rounds=rounds if quick else 2 * rounds,
            block_ns=QUICK_BLOCK_NS if quick else BLOCK_NS,
            warm_up_ns=QUICK_WARM_UP_NS if quick else WARM_UP_NS,
        )

    def _session(self, prepared: Sequence[Prepared]) -> session.SessionResult:
        candidates = [
            session.Candidate(
                id=str(index),
                artifact=one.subject.artifact.digest,
                backend=one.subject.backend,
                folder=one.subject.folder,
                main=one.subject.artifact.main,
                inputs=one.subject.artifact.inputs,
                runtime=one.subject.artifact.runtime,
                threads=self.request.threads,
                size_bytes=one.subject.artifact.size_bytes,
                samples=one.samples,
            )
            for index, one in enumerate(prepared)
        ]

        def on_event(kind: str, key: str, fraction: Optional[float]) -> None:
            if kind == "load":
                self.tell(f"warming up {prepared[int(key)].subject.name}", None)
            elif kind == "round":
                self.tell("measuring in turn" if len(prepared) > 1 else "measuring", fraction)

        options = self._options(prepared[0].samples)
        return session.run_session(
            candidates, options, self.logs, on_event, machine=machine.fingerprint(), observe=machine.state
        )

    def _alone(self, key: str, one: Prepared) -> Alone:
        """What was asked for beside the session. A quick bench starts nothing afresh."""
        artifact, request = one.subject.artifact, self.request
        args = {
            "backend": one.subject.backend,
            "main": str(one.subject.main),
            "runtime": dict(artifact.runtime),
            "threads": request.threads,
            "inputs": [spec.to_json() for spec in artifact.inputs],
            "samples": str(one.samples),
            "feeds": alone.SAMPLES,
            "warm_up_ns": WARM_UP_NS,
            "block_ns": BLOCK_NS,
        }

        def call(function: str, args: Mapping[str, Any]) -> Dict[str, Any]:
            return self._call(f"alone-{key}", function, args, Limits())

        self.tell(f"measuring {one.subject.name} by itself", None)
        files = [one.subject.folder / file.path for file in artifact.files]
        return Alone(
            None if request.quick else alone.starts(args, files, call),
            alone.batch_curve(args, request.batches, call) if request.batches else None,
            alone.sustained(args, request.sustained_ns, call) if request.sustained_ns else None,
        )

    def _call(self, log: str, function: str, args: Mapping[str, Any], limits: Limits = LIMITS) -> Dict[str, Any]:
        """A job in a worker. The log of one that crashed is kept."""
        try:
            return worker.call(
                function,
                args,
                log=self.logs / f"{log}.log",
                limits=limits,
                progress=lambda fraction, text: self.tell(text, fraction) if fraction else None,
            )
        except WorkerCrashed:
            self.keep.append(self.logs)
            raise

    def _data_json(self) -> Optional[Dict[str, Any]]:
        if self.request.data is None:
            return None
        meta = next(iter(self.data.values()))[1]
        return {"location": self.request.data, "samples": meta["count"], "labels": meta["labels"]}


def _write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A line for each, as `edgeopt.measurement.Measurement.to_json` gives it, with what it is called and ran on."""
    text = "".join(f"{json.dumps(line, separators=(',', ':'), allow_nan=False)}\n" for line in lines)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"cannot be written: {error.strerror}", where=str(path), remedy="Give --output another folder."
        ) from None


def _specs(values: Sequence[Mapping[str, Any]]) -> List[TensorSpec]:
    return [TensorSpec.from_json(value) for value in values]


def check_data(location: str) -> None:
    """That the file is there. Raises InputError."""
    file, _, function = location.rpartition(":")
    if function.isidentifier() and file and not Path(location).exists():
        if not file.endswith(".py") or Path(file).is_file():
            return
        location = file
    path = Path(location)
    if not path.is_file():
        raise InputError("no such data file", where=location, remedy=nearby(path, "Give samples as a .npz or .npy."))


@contextlib.contextmanager
def _of(place: object) -> Iterator[None]:
    """Gives an error of a worker the file that the user knows."""
    try:
        yield
    except EdgeoptError as error:
        if error.where is None and str(place) not in error.message:
            error.where = str(place)
        if isinstance(error, CorruptArtifact) and error.remedy is None:
            error.remedy = "Give the file as it was exported, whole."
        raise
