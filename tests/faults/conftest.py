"""Faults are ordinary tests: each says in a mark what is done, how, and what comes of it, and counts how many times.

A plain `pytest` does each a few times. `python tests/faults/record.py` does them often, and keeps the record that the
README's table is made of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from record import INJECTED, LONG


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(fault, how, outcome): a row of the README's table of reliability")


@pytest.fixture
def injections(record_property) -> Callable[[int, int], Iterator[int]]:
    """`injections(short, long)` counts from 0: to `short` in a plain run of the tests, to `long` for the record."""

    def count(short: int, long: int) -> Iterator[int]:
        times = long if os.environ.get(LONG) else short
        record_property(INJECTED, times)
        return iter(range(times))

    return count


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where everything keeps its temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder
