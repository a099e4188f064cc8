"""Many runs at once in one folder with one cache."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import processes
import pytest
from aftermath import nothing_is_left, the_store_verifies
from command import ONE_CANDIDATE, built, digests, project, start


def patient() -> None:
    processes.as_usual()
    os.nice(19)


@pytest.mark.fault(
    "many runs at once",
    "`edgeopt convert` of one recipe, all started together, with one cache and one folder of runs",
    "each completes with the same digests in a run of its own; each step was built by one of them, and the session "
    "measured by one; the store verifies; nothing is left",
)
def test_many_runs_at_once_share_one_cache(tmp_path, temporary, injections):
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    running = [start(folder, cache, prepare=patient) for _ in injections(10, 200)]
    ended = [process.communicate(timeout=3600) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), ended[0][1]
    documents = [json.loads(out) for out, _ in ended]
    assert Counter(step for one in documents for step in built(one)) == Counter(digests(documents[0]).keys())
    assert all(digests(one) == digests(documents[0]) for one in documents)
    assert sum(not one["reused"]["measurements"] for one in documents) == 1
    assert {Path(one["run"]).name for one in documents} == {f"recipe-{1 + number}" for number in range(len(running))}
    the_store_verifies(cache)
    nothing_is_left(folder, cache, temporary)
