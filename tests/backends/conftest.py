"""The suite's subjects as a fixture, with the example package found as an installed one is."""

from __future__ import annotations

from collections.abc import Iterator

import example
import pytest
import torch
from conformance import SUBJECTS, Subject


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(example.FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(example.FOLDER))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=SUBJECTS, ids=str)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    return found
