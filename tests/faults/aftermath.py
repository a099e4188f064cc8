"""What has to be true after a fault, whatever it was."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import command

from edgeopt.store import Store


def nothing_is_left(folder: Path, cache: Path, temporary: Path) -> None:
    """No process, no held lock, no temporary file: neither beside the runs, nor in the cache, nor where all else is."""
    assert command.gone(cache, 5)
    assert not list(command.leftovers(folder, cache))
    assert not list(held(cache))
    assert not [hint for hint in (cache / "hints").glob("*") if hint.suffix != ".json"]
    assert not os.listdir(temporary)


def the_store_verifies(cache: Path) -> None:
    assert not Store(cache).verify()[1]


def held(cache: Path) -> Iterator[Path]:
    """The locks of a cache that some process holds."""
    for path in [*(cache / "locks").iterdir(), *cache.glob("users")]:
        with open(path) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield path
