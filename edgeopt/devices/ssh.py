"""A device that is reached by SSH: what is built here is measured there, by the same code.

Models and samples are sent once and kept there by their content; results are fetched, and the place where a job ran is
cleared. The unit of what is not lost when a connection breaks is a quality, and a file that was sent whole: both are
found again by the same command. The session of all candidates is one measurement, and begins again.

Jobs of quality run side by side, as they do here; the session runs alone. This module knows nothing of how the
connection is made.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from edgeopt import backends, jsontext
from edgeopt.artifact import sha256_of_file
from edgeopt.conditions import Machine
from edgeopt.devices import Call
from edgeopt.devices.openssh import Connection, Master, address_of
from edgeopt.errors import (
    CorruptArtifact,
    EdgeoptError,
    InputError,
    Interrupted,
    MissingDependency,
    TargetUnreachable,
)
from edgeopt.kit import measure, remote, subjects
from edgeopt.measuring import session
from edgeopt.target import Target
from edgeopt.text import named_line
from edgeopt.units import format_size
from edgeopt.worker import Channel

AT_ONCE = 6  # jobs of quality, where the device has the cores: sshd's MaxSessions is 10 for one connection
SPARE_BYTES = 64 << 20

Told = Callable[[float | None, str], None]


class SshDevice:
    """Measures on another machine. It connects when it is first asked something, and stays connected."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._address = address_of(target.reach, target.python)
        self._master: Master | None = None
        self._found: dict[str, Any] = {}
        self._runtimes: dict[str, Mapping[str, Any]] = {}
        self._sent: set[str] = set()
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(1)

    def check(self, backends_used: Iterable[str]) -> None:
        """That everything is there to measure with these backends. Raises TargetUnreachable, MissingDependency."""
        wanted = [name for name in dict.fromkeys(backends_used) if name not in self._runtimes]
        found = self._examine(wanted)
        python = self._address.python
        if not found["numpy"]:
            raise MissingDependency(
                f"{self._address} has no numpy, which measuring needs",
                remedy=f"Install it there: {python} -m pip install numpy",
            )
        for name in wanted:
            if not found["backends"][name]["usable"]:
                why = found["backends"][name]["reason"] or f"{found['backends'][name]['missing']} is not installed"
                raise MissingDependency(
                    f"the backend {name} does not run on {self._address}: {why}",
                    remedy=f"Install it there: {python} -m pip install {backends.find(name).DISTRIBUTION}, "
                    "or take it out of the recipe.",
                )

    def machine(self) -> Machine:
        return Machine.from_json((self._found or self._examine(()))["machine"])

    def isa(self) -> tuple[str, ...]:
        return self.machine().isa

    def runtime_version(self, backend: str) -> str | None:
        """The version of the runtime there, None where it has none."""
        if backend not in self._runtimes:
            self._examine([backend])
        version: str | None = self._runtimes[backend]["version"]
        return version

    def quality(self, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        connection = self._connected()
        with self._turns:
            found = call(
                "edgeopt.devices.ssh:run_quality",
                {"connection": connection.to_json(), "sent": sorted(self._sent), "job": dict(args)},
            )
        self._sent.update(found.pop("sent"))
        return found

    def session(
        self,
        candidates: Sequence[session.Candidate],
        options: session.SessionOptions,
        logs: Path,
        on_event: session.OnEvent,
        stopping: Callable[[], bool],
    ) -> session.SessionResult:
        connection = self._connected()
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / "ssh.log"
        trees = [_tree(candidate.folder) for candidate in candidates]
        samples = _tree(options.samples)

        def progressed(fraction: float | None, text: str) -> None:
            if stopping():
                raise Interrupted("stopped while measuring")
            kind, _, name = text.partition(" ")
            on_event(kind, name, fraction)

        self._sent |= send(connection, [samples, *trees], self._sent, log, lambda part, _: progressed(part, "send"))
        args = {
            "candidates": [
                [remote.candidate_to_json(candidate), _digests(tree)]
                for candidate, tree in zip(candidates, trees, strict=True)
            ],
            "samples": _digests(samples),
            "options": {name: value for name, value in asdict(options).items() if name != "samples"},
        }
        found = connection.call("edgeopt.kit.remote:run_session", args, log=log, progress=progressed)
        with tempfile.TemporaryDirectory(dir=connection.folder) as folder:
            connection.get(found["results"], Path(folder))
            for path in (Path(folder) / "log").glob("*.log"):
                (logs / path.name).write_bytes(path.read_bytes())
            return read_answer(Path(folder) / remote.RESULT, logs)

    def alone(self, function: str, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        connection = self._connected()
        job = {"connection": connection.to_json(), "sent": sorted(self._sent), "function": function, "job": dict(args)}
        found = call("edgeopt.devices.ssh:run_alone", job)
        self._sent.update(found["sent"])
        result: dict[str, Any] = found["result"]
        return result

    def bench(self, request: measure.Request, tell: measure.Tell) -> dict[str, Any]:
        """`edgeopt.kit.measure.bench` there, the names of what is measured as they were given here.

        Raises what that raises, InputError where the samples are made by a function.
        """
        found = subjects.read(request.paths, request.preprocess, to_run=False)
        if request.output is not None:
            subjects.check_new(request.output)
        if request.data is not None and not Path(request.data).is_file():
            raise InputError(
                "no such file of samples", where=request.data, remedy="For another machine give them as a .npz or .npy."
            )
        self.check(subject.backend for subject in found)
        files, names = _given(found)
        data = f"data/{Path(request.data).name}" if request.data else None
        if data is not None and request.data is not None:
            files[data], names[data] = Path(request.data), request.data
        told = {
            "paths": list(names)[: len(found)],
            "data": data,
            "samples": request.samples,
            "preprocess": request.preprocess.to_json(),
            "threads": request.threads,
            "rounds": request.rounds,
            "quick": request.quick,
            "batches": list(request.batches),
            "sustained_ns": request.sustained_ns,
        }
        connection = self._connected()
        with _log(connection) as log, tempfile.TemporaryDirectory(dir=connection.folder) as folder:
            try:
                send(connection, [files], self._sent, log, lambda fraction, text: tell(text, fraction))
                done = connection.call(
                    "edgeopt.kit.remote:bench",
                    {"request": told, "files": _digests(files)},
                    log=log,
                    progress=lambda fraction, text: tell(text, fraction),
                )
            except EdgeoptError as error:
                error.message, error.where = _renamed(error.message, names), _renamed(error.where, names)
                raise
            connection.get(done["results"], Path(folder))
            raw = Path(folder) / remote.RAW
            if request.output is not None and raw.exists():
                lines = (json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines())
                text = "".join(f"{json.dumps(_renamed(line, names), separators=(',', ':'))}\n" for line in lines)
                partial = request.output.with_name(f".{request.output.name}.partial")
                partial.write_text(text, encoding="utf-8")
                partial.replace(request.output)
        renamed: dict[str, Any] = _renamed(done["document"], names)
        return renamed

    def _connected(self) -> Connection:
        with self._lock:
            if self._master is None:
                self._master = Master(self._address)
            return self._master.connection

    def _examine(self, wanted: Iterable[str]) -> dict[str, Any]:
        connection = self._connected()
        with _log(connection) as log:
            found = connection.call("edgeopt.kit.remote:examine", {"backends": list(wanted)}, log=log)
        if not self._found:
            self._turns = threading.Semaphore(min(AT_ONCE, found["machine"]["cores"]))
        self._found = found
        self._runtimes |= found["backends"]
        return found


def read_answer(path: Path, logs: Path) -> session.SessionResult:
    """The session that a device sent. Raises CorruptArtifact where the file is anything else."""
    try:
        return remote.read_session(jsontext.parse(path.read_text(encoding="utf-8")), logs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CorruptArtifact(
            f"what the device answered is not a session: {named_line(error)}",
            remedy="Run the same command again; what is built is kept.",
        ) from error


def run_quality(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """The host's end of a job of quality, a worker: send, run `edgeopt.kit.remote:quality`, fetch.

    `job` is what `edgeopt.measuring.quality:run` takes, `sent` what is known to be there. Returns what that returns,
    and `sent`: what is there now.
    """
    connection, job = Connection.from_json(args["connection"]), dict(args["job"])
    main, out = Path(job.pop("main")), Path(job.pop("out"))
    model, samples = _tree(main.parent), _tree(Path(job.pop("samples")))
    given = job.pop("reference")
    reference = _tree(Path(given)) if given else None
    with _log(connection, sys.stderr) as log:
        sent = send(connection, [model, samples, reference or {}], set(args["sent"]), log, channel.progress)
        told = {
            "job": {**job, "main": main.name},
            "model": _digests(model),
            "samples": _digests(samples),
            "reference": _digests(reference) if reference is not None else None,
        }
        found = connection.call("edgeopt.kit.remote:quality", told, log=log, progress=channel.progress)
    channel.progress(None, "fetching outputs")
    connection.get(found["results"], out)
    return {**found["result"], "sent": sorted(sent)}


def run_alone(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """The host's end of a job of `edgeopt.measuring.alone`, a worker: send, run there. Returns `result` and `sent`."""
    connection, job = Connection.from_json(args["connection"]), dict(args["job"])
    main = Path(job.pop("main"))
    model, samples = _tree(main.parent), _tree(Path(job.pop("samples")))
    with _log(connection, sys.stderr) as log:
        sent = send(connection, [model, samples], set(args["sent"]), log, channel.progress)
        told = {
            "function": args["function"],
            "job": {**job, "main": main.name},
            "model": _digests(model),
            "samples": _digests(samples),
        }
        found = connection.call("edgeopt.kit.remote:alone", told, log=log, progress=channel.progress)
    return {"result": found, "sent": sorted(sent)}


def send(
    connection: Connection, trees: Iterable[Mapping[str, Path]], known: set[str], log: Path, tell: Told
) -> set[str]:
    """Send the files of trees that are not there yet. Returns the digests of all.

    Raises TargetUnreachable where the disk there has no room for them.
    """
    files = {_digest(path): path for tree in trees for path in tree.values()}
    asked = sorted(files.keys() - known)
    if not asked:
        return set(files)
    found = connection.call("edgeopt.kit.remote:missing", {"files": asked}, log=log)
    missing = {sha256: files[sha256] for sha256 in found["missing"]}
    size = sum(path.stat().st_size for path in missing.values())
    if size + SPARE_BYTES > found["free_bytes"]:
        free = format_size(found["free_bytes"])
        raise TargetUnreachable(
            f"{connection.address} has {free} free for {format_size(size)} of models and samples",
            remedy="Free some room on the disk of its ~/.cache, or set XDG_CACHE_HOME there, or take fewer samples.",
        )
    if missing:
        connection.put(missing, lambda fraction: tell(fraction, f"sending {format_size(size)}"))
    return set(files)


@contextlib.contextmanager
def _log(connection: Connection, stream: TextIO | None = None) -> Iterator[Path]:
    """A file for what is printed on the device; `stream` is given it where that ends with an error."""
    with tempfile.TemporaryDirectory(dir=connection.folder) as folder:
        log = Path(folder) / "log"
        try:
            yield log
        except EdgeoptError as error:
            if stream is not None and log.exists():
                stream.write(log.read_text(errors="replace"))
            if (error.remedy or "").startswith("Log: "):  # a path there, or the one that is about to go
                error.remedy = None
            raise


def _given(found: Sequence[subjects.Subject]) -> tuple[dict[str, Path], dict[str, str]]:
    """The files of bundles and models by their places there, and for each place the name it has here."""
    files: dict[str, Path] = {}
    names: dict[str, str] = {}
    for number, subject in enumerate(found):
        if subject.bundle is not None:
            place = f"given-{number}"
            files |= {f"{place}/{name}": path for name, path in _tree(subject.folder).items()}
        else:
            place = f"given-{number}/{subject.artifact.main}"
            files |= {f"given-{number}/{one.path}": subject.folder / one.path for one in subject.artifact.files}
        names[place] = subject.name
    return files, names


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """JSON, with the names that things have there replaced by those they have here."""
    if isinstance(value, dict):
        return {_renamed(key, names): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        for there, here in names.items():
            value = here.join(re.split(rf"\b{re.escape(there)}(?![\w-])", value))
    return value


def _tree(folder: Path) -> dict[str, Path]:
    """The files below a folder by their names there."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _digests(tree: Mapping[str, Path]) -> dict[str, str]:
    return {name: _digest(path) for name, path in tree.items()}


_KNOWN: dict[tuple[str, int, int], str] = {}


def _digest(path: Path) -> str:
    """The sha256 of a file, which in the store does not change: read once a process."""
    found = path.stat()
    key = (str(path), found.st_size, found.st_mtime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = sha256_of_file(path)
    return _KNOWN[key]
