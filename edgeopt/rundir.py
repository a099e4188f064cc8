"""The run directory: everything a run found out, written aside and moved into place in one rename.

run.json             all that is needed to do it again: recipe, digests, versions, seeds, machine
choice.json          the document of `edgeopt.results`
measurements.jsonl   a line for each candidate, with every raw sample
batch_curve.json     the winner's latency by batch size, with every raw sample
report.md            the table for a person; report.html the same for a browser
best/                the winner's bundle
log/                 what the workers of failed candidates printed
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgeopt import __version__, backends, bundle, sbom
from edgeopt.artifact import Artifact
from edgeopt.errors import InputError
from edgeopt.plan import IMPORT
from edgeopt.report import card, html, markdown
from edgeopt.results import Outcome, RunResult
from edgeopt.samples import Samples
from edgeopt.target import Target

GOLDEN_SAMPLES = 4
RUNS = "runs"
LOCK = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """Where a run is written (`partial`), and where it will be (`final`)."""

    partial: Path
    final: Path


@contextlib.contextmanager
def reserved(output: Path | None, name: str) -> Iterator[RunFolder]:
    """A folder to write a run in, tried out before the work begins; removed again unless the run is finished.

    `output` must not exist or be empty; None takes the next free runs/<name>-<n>. Raises InputError where it cannot be
    written, or is full.
    """
    final = Path.cwd() / RUNS / name if output is None else output.absolute()
    made = [parent for parent in final.parents if not parent.exists()]
    held: IO[bytes] | None = None
    try:
        try:
            _sweep(final.parent)
            final, held = _free(final) if output is None else (final, _hold(final))
            if held is None:
                raise InputError(f"another run is writing {output}", where="--output", remedy="Give it a new folder.")
            if final.exists() and (not final.is_dir() or any(final.iterdir())):
                what = "not empty: a run never overwrites another" if final.is_dir() else "a file: a run is a folder"
                raise InputError(f"{output} is {what}", where="--output", remedy="Give it a new folder.")
            (_partial(final) / LOCK).write_bytes(b" " * (1 << 16))
        except OSError as error:
            raise _unwritable(final, error) from None
        yield RunFolder(_partial(final), final)
    finally:
        if held is not None:
            shutil.rmtree(_partial(final), ignore_errors=True)
            held.close()
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only when nothing was written there


def write(folder: RunFolder, document: Mapping[str, Any], result: RunResult, target: Target) -> None:
    """Write the run and move it into place. Raises InputError when the disk is full."""
    try:
        _write(folder.partial, document, result, target)
        with contextlib.suppress(FileNotFoundError):
            folder.final.rmdir()
        os.replace(folder.partial, folder.final)
    except OSError as error:
        raise _unwritable(folder.final, error) from None


def _write(folder: Path, document: Mapping[str, Any], result: RunResult, target: Target) -> None:
    run = run_json(document, result, target)
    _json(folder / "run.json", run)
    _json(folder / "choice.json", document)
    measured = {name: outcome.measurement for name, outcome in result.outcomes.items() if outcome.measurement}
    lines = [measurement.to_line() + "\n" for measurement in measured.values()]
    (folder / "measurements.jsonl").write_text("".join(lines))
    (folder / "report.md").write_text(markdown.render(document))
    (folder / "report.html").write_text(html.render(document, measured, run), encoding="utf-8")
    for name, log in result.logs.items():
        (folder / "log").mkdir(exist_ok=True)
        shutil.copyfile(log, folder / str(result.outcomes[name].log))
    if document["winner"]:
        if (curve := result.outcomes[document["winner"]].batch_curve) is not None:
            _json(folder / "batch_curve.json", curve.to_json())
        _write_best(folder / "best", result.outcomes[document["winner"]], document, run, result)


def run_json(document: Mapping[str, Any], result: RunResult, target: Target) -> dict[str, Any]:
    """What is needed to do the run again and to see whether the same comes out."""
    recipe = result.plan.recipe
    return {
        "schema": 1,
        "edgeopt": __version__,
        "recipe": {
            "name": recipe.name,
            "folder": recipe.folder,
            "of_a_level": recipe.steps_optional,
            "document": recipe.document,
        },
        "model": recipe.model,
        "weights": recipe.weights,
        "data": {
            role: {
                "location": source.location,
                "samples": source.samples,
                "seed": source.seed,
                "digest": result.sources[f"data:{role}"]["digest"],
                "count": result.sources[f"data:{role}"]["count"],
            }
            for role, source in result.plan.data.items()
        },
        "import": result.sources[IMPORT],
        "target": target.to_json(),
        "machine": result.session.machine.to_json() if result.session else None,
        "measure": {"rounds": recipe.measure.rounds, "block_ns": recipe.measure.block_ns, "seed": 0},
        "steps": [
            {
                "id": step.id,
                "stage": step.stage,
                "choice": step.choice,
                "options": step.options.model_dump(mode="json"),
                "key": built.entry.key,
                "inputs": built.entry.inputs,
                "artifact": built.artifact.digest,
                "reused": result.reused[step.id],
                "seconds": built.entry.seconds,
                "peak_memory_bytes": built.entry.meta.get("peak_memory_bytes"),
            }
            for step in result.plan.steps
            if (built := result.builds.get(step.id))
        ],
        "winner": document["winner"],
        "seconds": document["seconds"],
    }


def _write_best(
    folder: Path, winner: Outcome, document: Mapping[str, Any], run: Mapping[str, Any], result: RunResult
) -> None:
    """The winner's bundle, its golden outputs those that its backend gave on the target while quality was taken."""
    import numpy as np

    built = result.builds[winner.candidate.step]
    entry = result.qualities[winner.candidate.id]
    assert winner.artifact is not None and winner.measurement is not None and result.samples is not None
    samples = Samples(result.samples.folder)
    count = min(GOLDEN_SAMPLES, len(samples))
    outputs = {
        spec.name: np.load(entry.files / f"outputs-{index}.npy", mmap_mode="r", allow_pickle=False)[:count]
        for index, spec in enumerate(winner.artifact.outputs)
    }
    chosen = next(c for c in document["candidates"] if c["id"] == winner.candidate.id)
    bundle.write_bundle(
        folder,
        winner.artifact,
        built.folder,
        winner.candidate.backend,
        {name: np.asarray(samples.raw(name)[:count]) for name in samples.inputs},
        outputs,
        samples.preprocess,
        [{**winner.measurement.summary(), **{key: chosen[key] for key in ("quality", "placement", "batch_curve")}}],
        {"edgeopt": __version__, "candidate": chosen["id"], "steps": chosen["steps"], "source": _source_of(result)},
        documents={
            sbom.NAME: _bill_of_materials(winner, winner.artifact, result),
            card.NAME: card.render(
                document,
                run,
                winner.artifact,
                samples.preprocess,
                samples.inputs,
                count,
                winner.measurement.energy_uj_per_inference,
            ),
        },
    )


def _bill_of_materials(winner: Outcome, artifact: Artifact, result: RunResult) -> str:
    assert winner.measurement is not None
    steps = result.plan.lineage(result.plan.step(winner.candidate.step))
    tools = {IMPORT: result.sources[IMPORT]["tools"]}
    tools |= {step.id: result.builds[step.id].artifact.made_by.tools for step in steps}
    runtime = backends.find(winner.candidate.backend).DISTRIBUTION, winner.measurement.runtime_version
    return sbom.render(artifact, winner.candidate.id, tools, runtime)


def _source_of(result: RunResult) -> dict[str, Any]:
    """The imported model that all candidates come from."""
    built = next(iter(result.builds.values()))
    recipe = result.plan.recipe
    return {"recipe": recipe.name, "model": Path(recipe.model).name, "parent": built.artifact.parent}


def _free(start: Path) -> tuple[Path, IO[bytes]]:
    """The first <start>-<n> that is neither there nor being written, and the hold on it."""
    for number in itertools.count(1):
        final = start.with_name(f"{start.name}-{number}")
        if not final.exists() and (held := _hold(final)) is not None:
            if not final.exists():
                return final, held
            shutil.rmtree(_partial(final), ignore_errors=True)  # a run that was being written there is finished now
            held.close()
    raise AssertionError("counting ended")


def _partial(final: Path) -> Path:
    return final.parent / f".{final.name}.partial"


def _hold(final: Path) -> IO[bytes] | None:
    """Make the empty folder that a run is written in and lock it for this process; None where another one holds it.

    What locks it is its run.json: the lock ends with the process, however that ends, so that a dead run's folder is
    known and taken over.
    """
    partial = _partial(final)
    while True:
        partial.mkdir(parents=True, exist_ok=True)
        try:
            held = open(partial / LOCK, "ab")  # noqa: SIM115  open for as long as the run is written
        except FileNotFoundError:
            continue  # swept by another run just now
        except OSError:
            with contextlib.suppress(OSError):
                partial.rmdir()
            raise
        if not _locked(held, partial / LOCK):
            held.close()
            if (partial / LOCK).exists():
                return None
            continue
        for path in partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        return held


def _locked(file: IO[bytes], path: Path) -> bool:
    """Whether `file` could be locked, and is still what stands at `path`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _sweep(folder: Path) -> None:
    """Remove the folders of runs that died while they were written."""
    for partial in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            if not (partial / LOCK).exists():
                partial.rmdir()  # it died at once, and left nothing
                continue
            with open(partial / LOCK, "ab") as file:
                if _locked(file, partial / LOCK):
                    shutil.rmtree(partial, ignore_errors=True)


def _unwritable(final: Path, error: OSError) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{final}: no space left for the run", remedy="Free some, or give --output another disk.")
    return InputError(f"{final} cannot be written: {error.strerror}", remedy="Give --output a folder that can be.")


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
