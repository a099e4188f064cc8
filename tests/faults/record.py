"""Injects every fault often, and keeps what came of it: `python tests/faults/record.py [pytest's options]`.

It takes an hour or more; with `-k` the rows of some faults are taken anew, and the others stay as they are. The record
is record.json beside this file, of which the README's table is made (`python -m tests.faults.table`).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from table import RECORD, read, table

HERE = Path(__file__).parent
LONG = "EDGEOPT_FAULTS_LONG"  # in the environment while the record is taken
INJECTED = "injected"  # the property of a test that says how many times


class Recorder:
    """A plugin of pytest that sums up the reports of all tests of one fault."""

    def __init__(self) -> None:
        self.marks: dict[str, pytest.Mark] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.marks = {item.nodeid: mark for item in items if (mark := item.get_closest_marker("fault"))}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        mark = self.marks.get(report.nodeid)
        if mark is None or (report.when != "call" and report.passed):
            return
        fault, how, outcome = mark.args
        row = self.rows.setdefault(
            fault, {"fault": fault, "how": how, "outcome": outcome, "times": 0, "failed": [], "skipped": []}
        )
        if report.passed:
            row["times"] += dict(report.user_properties).get(INJECTED, 1)
        elif report.failed:
            row["failed"].append(report.nodeid.rpartition("::")[2])
        else:
            row["skipped"].append(report.longrepr[2].removeprefix("Skipped: "))


def main(arguments: list[str]) -> int:
    os.environ[LONG] = "1"
    recorder = Recorder()
    code = pytest.main([str(HERE), "-p", "no:cacheprovider", *arguments], plugins=[recorder])
    rows = {row["fault"]: row for row in read()} | recorder.rows
    RECORD.write_text(json.dumps(list(rows.values()), indent=1, ensure_ascii=False) + "\n")
    print(table(list(rows.values())))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
