"""Content-addressed storage of what steps made: atomic, locked, verified on read, garbage-collected.

    <root>/entries/<key>/      entry.json (inputs, digests of the files, meta) and files/
    <root>/partial/<key>/      being built; renamed into entries/ when complete
    <root>/partial/run-<id>/   the temporary files of one run, and of all that it starts
    <root>/locks/              held while a key is built, so that two runs build it once, and while a run lives
    <root>/hints/<key>.json    the source files that user code was found to load (see `Store.remember`)
    <root>/logs/               what workers printed
    <root>/checkpoints/<key>/  what a worker that was killed left for the next one; gone when the key is built

A key is the sha256 of a step's inputs as canonical JSON: whatever changes the result is among them. Failures are never
stored. The store knows nothing of models or measurements.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.artifact import FileEntry, canonical_json, list_files, sha256_of_file
from edgeopt.errors import InputError, Interrupted

SCHEMA = 1
RECORD = "entry.json"
RUN = "run-"  # what the temporary folder of a run is named by
WAIT_SECONDS = 0.1
LOGS_KEPT_SECONDS = 7 * 24 * 3600
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOADED = time.time()
Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A finished step. `files` is the folder of what it made, `meta` what it told, `seconds` what it took then.

    `listed` are the files in that folder, as they were when it was stored.
    """

    key: str
    folder: Path
    inputs: Mapping[str, Any]
    meta: Mapping[str, Any]
    seconds: float
    listed: Sequence[FileEntry]
    used: float

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.listed)

    @property
    def step(self) -> str:
        """The stage and the choice that made it, as people say it."""
        return f"{self.inputs.get('stage', '')} {self.inputs.get('choice', '')}".strip()


@dataclass(frozen=True)
class Damage:
    """An entry that is not what was stored. `step` is that of the entry, None where its record cannot tell."""

    key: str
    step: str | None
    what: str


@dataclass(frozen=True)
class Made:
    """What a build returns: its meta, and inputs that became known only by building (see `Store.build`)."""

    meta: Mapping[str, Any]
    late_inputs: Mapping[str, Any] | None = None


def default_root() -> Path:
    """EDGEOPT_CACHE, or edgeopt in the user's cache folder."""
    if chosen := os.environ.get("EDGEOPT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeopt"


def key_of(inputs: Inputs) -> str:
    """The sha256 of a step's inputs, in hexadecimal."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


class Store:
    """One folder that several runs may share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._corrupt: list[str] = []
        try:
            for name in ("entries", "partial", "locks", "hints", "logs"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(root, error) from None

    @property
    def corrupt(self) -> Sequence[str]:
        """Keys of the entries found damaged, and dropped, since this store was opened."""
        return tuple(self._corrupt)

    def find(self, inputs: Inputs) -> Entry | None:
        """The entry with these inputs, verified file by file. A damaged one is dropped, so that it is built again."""
        entry = self._read(self.root / "entries" / key_of(inputs))
        if entry is None:
            return None
        if _changed(entry) is not None:
            self._corrupt.append(entry.key)
            self._discard(entry.folder)
            return None
        with contextlib.suppress(OSError):
            os.utime(entry.folder / RECORD)
        return entry

    def build(
        self,
        inputs: Inputs,
        make: Callable[[Path], Made],
        *,
        place: str = "",
        stopping: Callable[[], bool] = lambda: False,
    ) -> tuple[Entry, bool]:
        """The entry with these inputs, built by `make(folder)` unless it is there: (entry, whether it was there).

        Another run that is building the same key is waited for, until `stopping()`. What `make` raises is raised, and
        nothing is stored. `Made.late_inputs` are added to the inputs before the entry is filed; `place` is that of
        `remember`. Raises InputError when the disk is full, and Interrupted.
        """
        key = key_of(inputs)
        with self._full_disk_told(), self._locked(key, stopping):
            if (found := self.find_recalled(inputs, place)) is not None:
                return found, True
            partial = self.root / "partial" / key
            shutil.rmtree(partial, ignore_errors=True)
            try:
                (partial / "files").mkdir(parents=True)
                started = time.monotonic()
                made = make(partial / "files")
                full = {**inputs, **(made.late_inputs or {})}
                record = {
                    "schema": SCHEMA,
                    "inputs": full,
                    "meta": dict(made.meta),
                    "seconds": round(time.monotonic() - started, 3),
                    "files": [[f.path, f.sha256, f.size_bytes] for f in list_files(partial / "files")],
                }
                self._file(partial / RECORD, {**record, "sha256": _seal(record)})
                final = self.root / "entries" / key_of(full)
                if (same := self.find(full)) is not None:  # made of the same sources in another place
                    return same, False
                if final.exists():
                    self._discard(final)
                os.replace(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            entry = self._read(final)
            assert entry is not None
            return entry, False

    def _file(self, path: Path, value: Mapping[str, Any]) -> None:
        try:
            _write(path, value)
        except OSError as error:
            if error.errno in _FULL:
                raise  # told with a remedy of its own
            raise _unwritable(self.root, error) from None

    def checkpoints(self, inputs: Inputs) -> Path:
        """The folder, not made yet, where a build with these inputs may keep how far it is."""
        return self.root / "checkpoints" / key_of(inputs)

    def forget_checkpoints(self, inputs: Inputs) -> None:
        """Remove that folder."""
        shutil.rmtree(self.checkpoints(inputs), ignore_errors=True)

    def remove(self, inputs: Inputs) -> None:
        """Drop the entry with these inputs, if there is one."""
        self._discard(self.root / "entries" / key_of(inputs))

    def remember(self, inputs: Inputs, hint: Mapping[str, Any], place: str = "") -> None:
        """Keep what building these inputs showed, for `recall`. Only a hint: it is checked whenever it is used.

        `place` is what decides which source files are loaded and is no input, such as their folder: the same file may
        find other modules beside it elsewhere.
        """
        path = self._hint(inputs, place)
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        self._file(temporary, hint)
        os.replace(temporary, path)

    def recall(self, inputs: Inputs, place: str = "") -> Mapping[str, Any] | None:
        """What was remembered for these inputs in this place."""
        try:
            hint = json.loads(self._hint(inputs, place).read_text())
        except (OSError, ValueError):
            return None
        return hint if isinstance(hint, dict) else None

    def _hint(self, inputs: Inputs, place: str) -> Path:
        return self.root / "hints" / f"{key_of({**inputs, 'place': place} if place else inputs)}.json"

    def find_recalled(self, inputs: Inputs, place: str = "") -> Entry | None:
        """`find`, with the digests of the source files that are remembered for these inputs as they are now."""
        full = self.recalled(inputs, place)
        return None if full is None else self.find(full)

    def recalled(self, inputs: Inputs, place: str = "") -> Inputs | None:
        """These inputs with the digests of the source files that are remembered for them; None where one is gone."""
        sources = (self.recall(inputs, place) or {}).get("sources")
        if not isinstance(sources, list):
            return inputs
        late = source_digests(sources)
        return None if late is None else {**inputs, **late}

    def entries(self) -> Iterator[Entry]:
        """Every entry, unverified."""
        for folder in sorted((self.root / "entries").iterdir()):
            if (entry := self._read(folder)) is not None:
                yield entry

    def verify(self) -> tuple[list[Entry], list[Damage]]:
        """Every entry, each of its files checked against its digest: (the sound, the damaged). Nothing is changed."""
        sound: list[Entry] = []
        damaged: list[Damage] = []
        for folder in sorted((self.root / "entries").iterdir()):
            try:
                entry = _entry(folder)
            except ValueError as error:
                damaged.append(Damage(folder.name, None, str(error)))
                continue
            if entry is None:
                damaged.append(Damage(folder.name, None, f"{RECORD} is missing"))
            elif (what := _changed(entry)) is not None:
                damaged.append(Damage(entry.key, entry.step, what))
            else:
                sound.append(entry)
        return sound, damaged

    def nearest(self, inputs: Inputs) -> Entry | None:
        """The entry of the same step that shares most of these inputs: what `cache explain` compares with."""
        same = [e for e in self.entries() if all(e.inputs.get(k) == inputs.get(k) for k in ("stage", "choice"))]
        return max(same, key=lambda e: (sum(e.inputs.get(k) == v for k, v in inputs.items()), e.used), default=None)

    def collect(self, limit_bytes: int, *, dry_run: bool = False) -> tuple[list[Entry], int]:
        """Remove the entries unused for longest until the rest fits in `limit_bytes`: (the removed, bytes kept).

        Raises InputError while another run uses the store.
        """
        with self._exclusive():
            kept = 0
            removed: list[Entry] = []
            for entry in sorted(self.entries(), key=lambda e: e.used, reverse=True):
                if not removed and kept + entry.size_bytes <= limit_bytes:
                    kept += entry.size_bytes
                else:
                    removed.append(entry)
            if not dry_run:
                for entry in removed:
                    self._discard(entry.folder)
                for name in ("partial", "locks", *(("hints", "logs") if limit_bytes == 0 else ())):
                    shutil.rmtree(self.root / name, ignore_errors=True)
                    (self.root / name).mkdir()
                if limit_bytes == 0:
                    shutil.rmtree(self.root / "checkpoints", ignore_errors=True)
            return removed, kept

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Path]:
        """While this is held, no other process collects garbage here. What dead runs left is removed first.

        Gives a folder for temporary files, gone at the end: when this process is killed, the next one removes it.
        """
        with contextlib.ExitStack() as held:
            with self._full_disk_told():
                fcntl.flock(held.enter_context(open(self.root / "users", "a")), fcntl.LOCK_SH)
                self._sweep()
                folder = held.enter_context(self._temporary())
            yield folder

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        name = f"{RUN}{os.getpid()}-{time.monotonic_ns()}"
        lock, folder = self.root / "locks" / name, self.root / "partial" / name
        with open(lock, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                folder.mkdir()
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove half-built entries and temporary files that no living run holds the lock of, and old logs."""
        import psutil

        for folder in (self.root / "partial").iterdir():
            key, dot, _ = folder.name.partition(".")
            if dot:  # put there by `_discard`
                shutil.rmtree(folder, ignore_errors=True)
                continue
            with contextlib.suppress(BlockingIOError), open(self.root / "locks" / key, "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                if key.startswith(RUN):  # nobody else will ever want it
                    Path(file.name).unlink(missing_ok=True)
        for hint in (self.root / "hints").glob("*.tmp-*"):
            if not psutil.pid_exists(int(hint.name.rpartition("-")[2])):
                hint.unlink(missing_ok=True)
        for log in (self.root / "logs").iterdir():
            # this process may have the number of one that is gone
            since = _LOADED if log.name.startswith(f"{os.getpid()}-") else time.time() - LOGS_KEPT_SECONDS
            with contextlib.suppress(OSError):
                if log.stat().st_mtime < since:
                    shutil.rmtree(log) if log.is_dir() else log.unlink()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        with open(self.root / "users", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.root}: another edgeopt is using the cache", remedy="Try again when it has ended."
                ) from None
            yield

    @contextlib.contextmanager
    def _locked(self, key: str, stopping: Callable[[], bool]) -> Iterator[None]:
        with open(self.root / "locks" / key, "a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stopping():
                        raise Interrupted("stopped while another run was building the same step") from None
                    time.sleep(WAIT_SECONDS)
            yield

    @contextlib.contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise InputError(
                f"{self.root}: no space left for the cache",
                remedy="Free some, run `edgeopt cache gc`, or point EDGEOPT_CACHE to another disk.",
            ) from None

    def _read(self, folder: Path) -> Entry | None:
        try:
            return _entry(folder)
        except ValueError:
            self._corrupt.append(folder.name)
            self._discard(folder)
            return None

    def _discard(self, folder: Path) -> None:
        """Out of the way in one rename, then removed: a reader sees all of an entry or none."""
        doomed = self.root / "partial" / f"{folder.name}.{os.getpid()}.{time.monotonic_ns()}"
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def source_digests(sources: Sequence[str]) -> dict[str, Any] | None:
    """{"sources": {file name: sha256}} of source files as they are now, None where one is gone."""
    try:
        found = {f"{number}:{Path(file).name}": sha256_of_file(Path(file)) for number, file in enumerate(sources)}
        return {"sources": found}
    except (OSError, TypeError):
        return None


def _entry(folder: Path) -> Entry | None:
    """An entry as its record tells, its files unread; None where it has none. Raises ValueError of the damage."""
    path = folder / RECORD
    try:
        record, used = json.loads(path.read_text()), path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise ValueError(f"{RECORD} cannot be read") from None
    if not isinstance(record, dict) or record.pop("sha256", None) != _seal(record):
        raise ValueError(f"{RECORD} is not what was written")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{RECORD} has schema {record.get('schema')}, this edgeopt reads schema {SCHEMA}")
    listed = tuple(FileEntry(*file) for file in record["files"])
    return Entry(folder.name, folder, record["inputs"], record["meta"], record["seconds"], listed, used)


def _changed(entry: Entry) -> str | None:
    """What is wrong with an entry's files, all of them read; None where nothing is."""
    for file in entry.listed:
        path = entry.files / file.path
        try:
            if (size := path.stat().st_size) != file.size_bytes:
                return f"{file.path} has {size} bytes, not {file.size_bytes}"
            if sha256_of_file(path) != file.sha256:
                return f"{file.path} is not what its sha256 says"
        except OSError as error:
            return f"{file.path}: {error.strerror}"
    return None


def _unwritable(root: Path, error: OSError) -> InputError:
    told = f"{root}: the cache cannot be written ({error.strerror})"
    return InputError(told, remedy="Point EDGEOPT_CACHE to a folder that can be.")


def _seal(record: Mapping[str, Any]) -> str:
    """What tells a damaged record from a sound one."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    with open(path, "w") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
