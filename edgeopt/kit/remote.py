"""The device's end of a connection: keeps the files that it is sent, and runs quality and sessions on them.

    <cache>/edgeopt-device/
        kits/<sha256>.pyz    the kit itself
        files/<sha256>       models and samples by their content: what is there is not sent again
        lock                 held by a session alone, by jobs of quality together: each measures undisturbed
        work/<id>/           one job; its process clears it up, and what a killed one left goes with the next connection
        results/<id>/        what a job made, until it is fetched

`<cache>` is XDG_CACHE_HOME or ~/.cache. Files that no job has used for a week are removed. `kit.pyz remote worker` is a
worker as in `edgeopt.worker`, whose connection is its life: when that is lost, the job is stopped with all its
processes. `put` and `get` move files. This module knows nothing of how the connection is made.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence

from edgeopt import worker
from edgeopt.artifact import TensorSpec, sha256_of_file
from edgeopt.conditions import Disturbance, Machine
from edgeopt.errors import EdgeoptError, InputError, from_json
from edgeopt.kit import measure, usable
from edgeopt.kit.transfer import inside, read_files, write_files
from edgeopt.measurement import Block, Measurement, compare
from edgeopt.measuring import machine, session
from edgeopt.samples import Preprocess
from edgeopt.statistics import Ratio
from edgeopt.worker import Channel, Limits

FOLDER = "edgeopt-device"
KEPT_SECONDS, RESULT_SECONDS = 7 * 24 * 3600.0, 24 * 3600.0
WAIT_SECONDS = 1.0
MEMORY_SHARE = 0.8  # of the device's memory, what one candidate may take
RESULT, RAW = "session.json", "raw.jsonl"
LOCK = "lock"

Tree = Mapping[str, str]  # relative path to sha256


def main(arguments: Sequence[str]) -> int:
    """`remote worker`, `remote put`, `remote get`: what the workstation starts, for nobody to type."""
    (verb,) = arguments
    if verb == "worker":
        return worker.main(far=True)
    os.umask(0o077)
    if verb == "put":
        print(json.dumps({"files": read_files(sys.stdin.buffer, _files(), by_content=True)}))  # noqa: T201
        return 0
    if verb == "get":
        folder = _root() / "results" / inside(json.loads(sys.stdin.readline())["results"]).name
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        write_files(sys.stdout.buffer, [(path.relative_to(folder).as_posix(), path) for path in paths])
        shutil.rmtree(folder)
        return 0
    raise InputError(f"there is no {verb!r}")


def examine(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job that tells what this device is, and which of the backends `args["backends"]` load here.

    It also removes what is old, and what killed jobs left.
    """
    os.umask(0o077)
    _sweep()
    found = {}
    for name in args["backends"]:
        channel.progress(None, f"trying {name}")
        found[name] = usable.backend(name).to_json()
    numpy = importlib.util.find_spec("numpy") is not None
    return {"machine": machine.fingerprint().to_json(), "numpy": numpy, "backends": found}


def missing(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job that tells which of the files `args["files"]` (by sha256) are not here, and the bytes free for them."""
    channel.progress(None, "looking for files")
    absent = [sha256 for sha256 in args["files"] if not _is_here(_files() / _digest(sha256), sha256)]
    return {"missing": absent, "free_bytes": shutil.disk_usage(_files()).free}


def quality(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job `edgeopt.measuring.quality:run`, its folders given as trees: model, samples, and reference or None.

    `job` are its other arguments, `main` below the model. Returns {"result", "results"}, the latter the name of what it
    wrote to its `out`, for `get` to fetch. What has no reference is one: its files are kept for the others.
    """
    with _turn(fcntl.LOCK_SH, channel), _work() as folder:
        job = {
            **args["job"],
            "main": str(_place(args["model"], folder / "model") / args["job"]["main"]),
            "samples": str(_place(args["samples"], folder / "samples")),
            "reference": str(_place(args["reference"], folder / "reference")) if args["reference"] else None,
            "out": str(folder / "out"),
        }
        (folder / "out").mkdir()
        log = folder / "log"
        limits = Limits(memory_bytes=_memory(None))
        try:
            found = worker.call("edgeopt.measuring.quality:run", job, log=log, limits=limits, progress=channel.progress)
        except EdgeoptError:
            sys.stderr.write(log.read_text(errors="replace") if log.exists() else "")
            raise
        for path in (folder / "out").iterdir() if args["reference"] is None else ():
            if not (kept := _files() / sha256_of_file(path)).exists():
                _link(path, kept)
        return {"result": found, "results": _keep(folder)}


def run_session(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The measurement of `edgeopt.measuring.session`: `candidates` as `candidate_to_json` made them, each with its
    model as a tree, `samples` as a tree, and the other `options`.

    Its events are the texts of the progress: "round", "load id". Returns {"results"}: session.json for `read_session`
    and the candidates' logs below log/, for `get` to fetch.
    """
    with _turn(fcntl.LOCK_EX, channel), _work() as folder:
        candidates = []
        for number, (told, tree) in enumerate(args["candidates"]):
            place = _place(tree, folder / f"model-{number}")
            candidate = candidate_from_json(told, place)
            limits = replace(candidate.limits, memory_bytes=_memory(candidate.limits.memory_bytes))
            candidates.append(replace(candidate, limits=limits))
        samples = _place(args["samples"], folder / "samples")
        (folder / "out").mkdir()
        result = session.run_session(
            candidates,
            session.SessionOptions(samples=samples, **args["options"]),
            folder / "out" / "log",
            lambda kind, name, fraction: channel.progress(fraction, f"{kind} {name}".rstrip()),
            machine=machine.fingerprint(),
            observe=machine.state,
        )
        (folder / "out" / RESULT).write_text(json.dumps(session_to_json(result), allow_nan=False))
        return {"results": _keep(folder)}


def alone(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job `function` of `edgeopt.measuring.alone`; `job` are its arguments, folders given as for `quality`."""
    with _turn(fcntl.LOCK_EX, channel), _work() as folder:
        job = {
            **args["job"],
            "main": str(_place(args["model"], folder / "model") / args["job"]["main"]),
            "samples": str(_place(args["samples"], folder / "samples")),
        }
        limits = Limits(memory_bytes=_memory(None))
        return worker.call(args["function"], job, log=folder / "log", limits=limits, progress=channel.progress)


def bench(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """`edgeopt.kit.measure.bench` of the `request`, in a folder that holds the tree `files`, to which its paths belong.

    Returns {"document", "results"}, the latter with every raw sample in raw.jsonl, for `get` to fetch.
    """
    told = dict(args["request"])
    with _turn(fcntl.LOCK_EX, channel), _work() as folder:
        os.chdir(_place(args["files"], folder / "given"))
        (folder / "out").mkdir()
        (folder / "temporary").mkdir()
        tempfile.tempdir = str(folder / "temporary")
        preprocess = Preprocess.from_json(told.pop("preprocess"))
        told["paths"], told["batches"] = tuple(told["paths"]), tuple(told["batches"])
        request = measure.Request(**told, preprocess=preprocess, output=folder / "out" / RAW)
        document = measure.bench(request, lambda text, fraction: channel.progress(fraction, text))
        return {"document": document, "results": _keep(folder)}


def candidate_to_json(candidate: session.Candidate) -> Dict[str, Any]:
    """Everything of a candidate that is the same on all machines."""
    return {
        "id": candidate.id,
        "artifact": candidate.artifact,
        "backend": candidate.backend,
        "main": candidate.main,
        "inputs": [spec.to_json() for spec in candidate.inputs],
        "runtime": dict(candidate.runtime),
        "threads": candidate.threads,
        "size_bytes": candidate.size_bytes,
        "limits": asdict(candidate.limits),
        "env": dict(candidate.env),
    }


def candidate_from_json(value: Mapping[str, Any], folder: Path) -> session.Candidate:
    """What `candidate_to_json` told, its files in `folder`."""
    inputs = tuple(TensorSpec.from_json(spec) for spec in value["inputs"])
    return session.Candidate(**{**value, "inputs": inputs, "limits": Limits(**value["limits"]), "folder": folder})


def session_to_json(result: session.SessionResult) -> Dict[str, Any]:
    """A session with every raw sample, failures included."""
    outcomes = {}
    for name, outcome in result.outcomes.items():
        told = outcome.measurement.to_json() if outcome.measurement else None
        outcomes[name] = {
            "measurement": {**told, "rounds": []} if told else None,
            "error": outcome.error.to_json() if outcome.error else None,
        }
    groups = [
        {
            "rounds": {name: [block.to_json() for block in blocks] for name, blocks in group.rounds.items()},
            "reference": group.reference,
            "twin": group.twin.to_json() if group.twin else None,
            "disturbance": group.disturbance.to_json(),
        }
        for group in result.groups
    ]
    return {"baseline": result.baseline, "machine": result.machine.to_json(), "outcomes": outcomes, "groups": groups}


def read_session(value: Mapping[str, Any], logs: Path) -> session.SessionResult:
    """What `session_to_json` told; ratios are computed again from the samples. `logs` is the folder of the logs."""
    baseline, groups = value["baseline"], []
    for group in value["groups"]:
        rounds = {name: tuple(map(Block.from_json, blocks)) for name, blocks in group["rounds"].items()}
        twin = Ratio.from_json(group["twin"]) if group["twin"] else None
        groups.append(session.Group(rounds, group["reference"], twin, Disturbance.from_json(group["disturbance"])))
    outcomes = {}
    for name, told in value["outcomes"].items():
        log = logs / f"{name}.log"
        error = from_json(told["error"]) if told["error"] else None
        if error is not None and (error.remedy or "").startswith("Log: "):
            error.remedy = f"Log: {log}"
        group = next((g for g in groups if name in g.rounds), None)
        measurement: Optional[Measurement] = None
        speedup = None
        if told["measurement"] and group:
            measurement = replace(Measurement.from_json(told["measurement"]), rounds=group.rounds[name])
        if group and name != baseline and baseline in group.rounds:
            speedup = compare(group.rounds[baseline], group.rounds[name], group.twin)
        outcomes[name] = session.Outcome(measurement, error, speedup, log)
    return session.SessionResult(outcomes, baseline, tuple(groups), Machine.from_json(value["machine"]))


def _root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / FOLDER


def _files() -> Path:
    folder = _root() / "files"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(sha256: str) -> str:
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise InputError(f"{sha256!r} is no sha256")
    return sha256


def _is_here(path: Path, sha256: str) -> bool:
    """Whether the file is here and whole. A damaged one is removed. One that is here is marked as used."""
    if not path.is_file():
        return False
    if sha256_of_file(path) != sha256:
        path.unlink()
        return False
    os.utime(path)
    return True


@contextlib.contextmanager
def _turn(kind: int, channel: Channel) -> Iterator[None]:
    """One session at a time on this device, and nothing beside it; jobs of quality beside each other."""
    _root().mkdir(parents=True, exist_ok=True)
    with open(_root() / LOCK, "a") as lock:
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                channel.progress(None, "waiting for what another run measures on this device")
                time.sleep(WAIT_SECONDS)
        yield


@contextlib.contextmanager
def _work() -> Iterator[Path]:
    """A folder for one job, locked while its process lives."""
    os.umask(0o077)
    (_root() / "work").mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=_root() / "work"))
    with open(folder / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sweep() -> None:
    """Remove folders of jobs whose process is gone, and files that nothing used for a week."""
    now = time.time()
    for folder in _root().glob("work/*"):
        with contextlib.suppress(BlockingIOError):
            try:
                with open(folder / LOCK, "r+") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except FileNotFoundError:  # about to be locked, or killed before that, or while it was being removed
                if _lives(int(folder.name.partition("-")[0])):
                    continue
            shutil.rmtree(folder, ignore_errors=True)
    for folder in _root().glob("results/*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < now - RESULT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    for path in [*_root().glob("files/*"), *_root().glob("files/.*.partial"), *_root().glob("kits/*")]:
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < now - KEPT_SECONDS:
                path.unlink()


def _place(tree: Tree, folder: Path) -> Path:
    """The files of a tree in a folder, as hard links: some runtimes refuse symbolic ones that lead out of it."""
    folder.mkdir()
    for name, sha256 in tree.items():
        place = folder.joinpath(*inside(name).parts)
        place.parent.mkdir(parents=True, exist_ok=True)
        _link(_files() / _digest(sha256), place)
    return folder


def _keep(work: Path) -> str:
    """Keep what a job wrote to its folder `out`; returns the name of the results."""
    (_root() / "results").mkdir(exist_ok=True)
    os.replace(work / "out", _root() / "results" / work.name)
    return work.name


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links; a file that is missing fails again
        shutil.copyfile(source, place)


def _memory(given: Optional[int]) -> Optional[int]:
    """The smaller of the limit given and the share of this device's memory, None where neither is known."""
    total = machine.fingerprint().memory_bytes
    limits = [given, int(total * MEMORY_SHARE) if total else None]
    return min((limit for limit in limits if limit is not None), default=None)
