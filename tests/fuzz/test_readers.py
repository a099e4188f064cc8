"""Damaged files: read all the same, or refused as `edgeopt.errors` says, in time, in memory, and nothing else touched.

`pytest tests/fuzz --hypothesis-profile=fuzz-long` tries a hundred times as many.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attempt
import corpus
import damage
import pytest
import readers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.worker import Worker

HERE = Path(__file__).parent
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)  # of native code
JSON_OF = (".json", ".jsonl", "stream")

Try = Callable[[str, Path], dict[str, Any]]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Try]:
    """A reader on a folder. Readers of the same libraries share a worker."""
    workers: dict[tuple[str, ...], Worker] = {}
    folder = tmp_path_factory.mktemp("workers")
    environment = {"PYTHONPATH": os.pathsep.join((str(HERE), str(HERE.parent))), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:

        def ask(name: str, place: Path) -> dict[str, Any]:
            libraries = readers.READERS[name].libraries
            if libraries not in workers:
                args, log = {"libraries": libraries}, folder / f"{len(workers)}.log"
                workers[libraries] = stack.enter_context(Worker("attempt:serve", args, log=log, env=environment))
                workers[libraries].receive(seconds=120)
            workers[libraries].send({"reader": name, "folder": str(place)})
            return workers[libraries].receive(seconds=3 * attempt.SECONDS)

        yield ask


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The valid folder of a reader."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("valid") / "files"
            corpus.make(name, made[name])
        return made[name]

    return folder


def judge(name: str, found: dict[str, Any]) -> None:
    kind, native = found["outcome"], readers.READERS[name].native
    if kind == "refused":
        assert found["code"] in (2, 4), found
        assert 1 <= len(found["lines"]) <= 5, found
    elif native and kind == "signal":
        assert found["signal"] in CRASHES, found
    elif not (native and kind == "memory"):
        assert kind == "read", found.get("traceback", found)


@pytest.mark.parametrize("name", readers.READERS)
def test_a_valid_file_is_read(tried: Try, valid: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    shutil.copytree(valid(name), tmp_path / "files")
    assert tried(name, tmp_path / "files")["outcome"] == "read", tried(name, tmp_path / "files")


@pytest.mark.parametrize("name", readers.READERS)
def test_a_damaged_file_is_read_or_refused(tried: Try, valid: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    reader, source = readers.READERS[name], valid(name)
    long = settings.get_current_profile_name() == "fuzz-long"
    count = 0

    @settings(max_examples=reader.rounds * (100 if long else 1), suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(reader.files), st.data())
    def every(file: str, data: st.DataObject) -> None:
        nonlocal count
        count += 1
        edits = data.draw(damage.edits(json_too=file.endswith(JSON_OF)))
        folder = tmp_path / str(count)
        shutil.copytree(source, folder)
        (folder / file).write_bytes(damage.damaged((source / file).read_bytes(), edits))
        judge(name, tried(name, folder))
        shutil.rmtree(folder)

    every()
