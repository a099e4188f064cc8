"""A package of somebody else's (tests/plugin/example): found as one that is installed is, in the suites alone."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent / "plugin" / "example"


@contextmanager
def installed() -> Iterator[None]:
    """For what is collected; tests have the folder on their path by a fixture."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path.remove(str(FOLDER))


def published(group: str) -> list[str]:
    """The names that installed packages, and the example, publish in a group of entry points."""
    with installed():
        return list(dict.fromkeys(entry.name for entry in importlib.metadata.entry_points(group=group)))
