"""The example package is found as an installed one is."""

from __future__ import annotations

from collections.abc import Iterator

import example
import pytest
import torch


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(example.FOLDER)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
