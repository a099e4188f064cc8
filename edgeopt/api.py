"""edgeopt from Python, for notebooks and other tools: `convert`, `bench`, and `load` of a bundle.

They do what the commands of these names do, raise the exceptions of `edgeopt.errors`, end no process and touch no
signal handler. The work is done in processes of its own, but for `load`: its runtime is loaded into this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Union

from edgeopt.errors import EdgeoptError, InputError

if TYPE_CHECKING:
    import numpy as np

    from edgeopt.artifact import TensorSpec
    from edgeopt.bundle import Bundle
    from edgeopt.report.live import Display

    Array = np.ndarray[Any, Any]

PathLike = Union[str, Path]
Progress = Callable[[str, Union[float, None]], None]
"""Called with what is being done and how far it is: a fraction of one, None where that is unknown."""


@dataclass(frozen=True)
class Measured:
    """One candidate of a run, or one artifact of a bench. What was not measured is None, never zero.

    `document` is all that is known of it, as in `convert --json` and `bench --json`.
    """

    document: Mapping[str, Any]

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def backend(self) -> str | None:
        return self.document.get("backend")

    @property
    def status(self) -> str | None:
        """chosen, inside, outside, failed or skipped; None in a bench, which has no budgets."""
        return self.document.get("status")

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is outside, failed or skipped."""
        return tuple(self.document.get("reasons", ()))

    @property
    def error(self) -> EdgeoptError | None:
        from edgeopt.errors import from_json

        told = self.document.get("error")
        return from_json(told) if told else None

    @property
    def size_bytes(self) -> int | None:
        """Of all files together."""
        artifact = self.document.get("artifact")
        found = artifact.get("size_bytes") if isinstance(artifact, Mapping) else self.document.get("size_bytes")
        return None if found is None else int(found)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Above what the runtime takes by itself."""
        return self.document.get("peak_memory_bytes")

    @property
    def accuracy(self) -> float | None:
        """The metric's value: a fraction of one, dB for sqnr."""
        return self._of("quality", "value")

    @property
    def accuracy_drop(self) -> float | None:
        """How far below the original's, a fraction of one."""
        return self._of("quality", "drop")

    @property
    def speedup(self) -> float | None:
        """Over the original of a run, or the first artifact of a bench, in the same session."""
        return self._of("speedup", "value")

    def latency_ns(self, percentile: str = "p50") -> float | None:
        """p50, p90, p95 or p99 in nanoseconds; None too where there were too few calls to tell."""
        found = (self.document.get("latency_ns") or {}).get(percentile)
        return float(found["value"]) if found else None

    def _of(self, key: str, field: str) -> float | None:
        return (self.document.get(key) or {}).get(field)


@dataclass(frozen=True)
class Result:
    """What `convert` found. `document` is what stands in choice.json. Printed, it is the table of the command."""

    document: Mapping[str, Any]

    @property
    def run(self) -> Path:
        """The run's folder, with report.html and everything else."""
        return Path(self.document["run"])

    @property
    def bundle(self) -> Path | None:
        """The winner's folder, for `load` and for the device; None without a winner."""
        return self.run / "best" if self.document["winner"] else None

    @property
    def candidates(self) -> tuple[Measured, ...]:
        return tuple(Measured(candidate) for candidate in self.document["candidates"])

    @property
    def winner(self) -> Measured | None:
        """None where no candidate is inside the budgets: `document["why"]` says why."""
        return next((one for one in self.candidates if one.id == self.document["winner"]), None)

    def __getitem__(self, candidate_id: str) -> Measured:
        return {one.id: one for one in self.candidates}[candidate_id]

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        from edgeopt.report.terminal import print_result

        text = StringIO()
        print_result(self.document, Console(file=text, width=120, highlight=False))
        return text.getvalue()


@dataclass(frozen=True)
class Measurements:
    """What `bench` found. `document` is that of `bench --json`. Printed, it is the table of the command."""

    document: Mapping[str, Any]

    @property
    def measured(self) -> tuple[Measured, ...]:
        """In the order of the paths."""
        return tuple(Measured(row) for row in self.document["measurements"])

    def __getitem__(self, name: str) -> Measured:
        return {one.id: one for one in self.measured}[name]

    def __str__(self) -> str:
        from edgeopt.kit.table import bench_lines

        return "\n".join(bench_lines(dict(self.document)))


class Model:
    """A bundle's artifact, loaded by the runtime that it was made for. Made by `load`; a context manager.

    `inputs` and `outputs` are the artifact's own. Samples are given as the source model's data was: raw, by the names
    of its inputs; the bundle's preprocessing is done here.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        from edgeopt import backends

        self._bundle = bundle
        self._session: Any = backends.require(bundle.backend).load(bundle.main, bundle.artifact.runtime, threads)

    @property
    def backend(self) -> str:
        return self._bundle.backend

    @property
    def precision(self) -> str:
        return self._bundle.artifact.precision

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._bundle.artifact.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._bundle.artifact.outputs

    @property
    def input_names(self) -> tuple[str, ...]:
        """The keys of what `run` takes."""
        return self._bundle.golden_inputs

    def run(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, float32, for raw samples by input name; samples along the first axis of each.

        Raises InputError where they do not fit.
        """
        import numpy as np

        from edgeopt import bundle

        if self._session is None:
            raise InputError("the model is closed", remedy="Load it again: edgeopt.load(...).")
        if set(samples) != set(self.input_names):
            told = f"{', '.join(map(str, samples)) or 'nothing'} was given, {', '.join(self.input_names)} is taken"
            raise InputError(told, remedy="Give an array for each input, by its name.")
        arrays = {name: np.asarray(samples[name]) for name in self.input_names}
        if 0 in {array.ndim for array in arrays.values()} or len({len(array) for array in arrays.values()}) != 1:
            raise InputError(
                "the inputs are of unlike numbers of samples", remedy="Samples go along the first axis of each."
            )
        if not len(next(iter(arrays.values()))):
            raise InputError("there are no samples in the inputs", remedy="Give one at least.")
        return bundle.compute(self._bundle, self._session, arrays)

    def __call__(self, *samples: Array) -> Any:
        """`run` by position: an array for each input. Gives an array where there is one output, else a dict."""
        if len(samples) != len(self.input_names):
            told = f"the model takes {len(self.input_names)} inputs, {len(samples)} were given"
            raise InputError(told, remedy=f"They are: {', '.join(self.input_names)}.")
        found = self.run(dict(zip(self.input_names, samples)))
        return next(iter(found.values())) if len(found) == 1 else found

    def close(self) -> None:
        """Give the memory back. What is computed after that raises InputError."""
        self._session = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<edgeopt.Model {self.backend} {self.precision}: {inputs} -> {outputs}>"


def convert(
    recipe: PathLike | Mapping[str, Any],
    *,
    level: str | None = None,
    data: PathLike | None = None,
    weights: PathLike | None = None,
    target: str | None = None,
    budget: Mapping[str, str] | None = None,
    time: str | None = None,
    output: PathLike | None = None,
    remeasure: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Build every candidate, measure each, choose the best inside the budgets: `edgeopt convert`.

    `recipe` is a recipe's file, a recipe as a mapping (its paths are relative to the current folder), or a model with
    `level` and `data`. `budget`, `target` and `time` go over what a file says: `budget={"latency p95": "5 ms"}`.
    `output` is the run's folder, new or empty. The caller looks at `Result.winner`: that nothing is inside the budgets,
    or that every candidate failed, is a result.

    Raises InputError, RecipeError, MissingDependency and TargetUnreachable before anything is built.
    """
    from edgeopt import request, run

    over: dict[str, Any] = {"target": target, "time": time, "base": Path.cwd()}
    over["budget"] = [f"{name}={bound}" for name, bound in (budget or {}).items()]
    if not isinstance(recipe, Mapping):
        read = request.read_recipe(str(recipe), level=level, data=_text(data), weights=_text(weights), **over)
    elif level or data or weights:
        raise InputError("level, data and weights are for a model without a recipe", remedy="Put them into the recipe.")
    else:
        read = request.of_mapping(_plain(recipe), **over)
    folder = None if output is None else Path(output)
    return Result(run.convert(read, output=folder, remeasure=remeasure, display=_display(progress)))


def bench(
    paths: PathLike | Sequence[PathLike],
    *,
    data: PathLike | None = None,
    samples: int | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    threads: int = 1,
    rounds: int | None = None,
    quick: bool = False,
    output: PathLike | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Measurements:
    """Prove bundles by their golden samples, then measure them and bare models in turn: `edgeopt bench`.

    `paths` are bundles, runs or model files, of which the first is what the others are compared with. `mean` and `std`
    preprocess the samples of bare models. `target` is a device's .yaml file, to measure there.

    Raises InputError, CorruptArtifact where a bundle does not compute here what it should, MissingDependency,
    TargetUnreachable; where several paths were given, one that failed has its `error`.
    """
    from edgeopt import catalog, devices
    from edgeopt.kit import measure
    from edgeopt.samples import Preprocess

    request = measure.Request(
        paths=(str(paths),) if isinstance(paths, (str, Path)) else tuple(map(str, paths)),
        data=_text(data),
        samples=samples,
        preprocess=Preprocess(tuple(mean), tuple(std)),
        threads=threads,
        rounds=rounds,
        quick=quick,
        output=None if output is None else Path(output),
    )
    measure_there = devices.find(catalog.target(target)).bench if target else measure.bench
    return Measurements(measure_there(request, progress or (lambda *_: None)))


def load(bundle: PathLike, *, threads: int = 1) -> Model:
    """A bundle (`best/`, or the run that it is in), ready to run in this process.

    Every file is checked against its digest. Raises InputError where it is no bundle, CorruptArtifact where it is
    damaged, MissingDependency where its runtime is not installed.
    """
    from edgeopt.kit import subjects
    from edgeopt.samples import Preprocess

    found = subjects.read([str(bundle)], Preprocess())[0].bundle
    if found is None:
        raise InputError("a bare model, not a bundle", where=str(bundle), remedy="Give the folder best/ of a run.")
    return Model(found, threads)


def _text(path: PathLike | None) -> str | None:
    return None if path is None else str(path)


def _plain(value: Any) -> Any:
    """A recipe as YAML would have it: paths are text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _display(progress: Progress | None) -> Display:
    """Nothing is shown unless it is asked for: a notebook is no terminal."""
    from edgeopt.report.live import Silent, Telling

    return Silent() if progress is None else Telling(progress)
