"""The README's table of reliability is the record, and the record knows every fault there is a test of."""

from __future__ import annotations

from pathlib import Path

from table import read, table

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_shows_the_record():
    assert table(read()) in README.read_text()


def test_every_fault_is_in_the_record_as_its_test_says(request):
    """Of the tests that run now: `pytest tests/faults` asks for all of them."""
    told = {(row["fault"], row["how"], row["outcome"]) for row in read()}
    marks = [mark for item in request.session.items if (mark := item.get_closest_marker("fault"))]
    names = {mark.args[0] for mark in marks}
    assert names <= {row["fault"] for row in read()}
    assert {row for row in told if row[0] in names} <= {tuple(mark.args) for mark in marks}


def test_what_failed_or_was_not_tried_is_told():
    row = {"fault": "f", "how": "h", "outcome": "all is well", "times": 0, "failed": [], "skipped": ["no disk"]}
    assert table([row]).endswith("| f | h | 0 | not tried: no disk |")
    assert table([{**row, "times": 3, "failed": ["test_x"]}]).endswith("| 3 | **failed**: test_x |")
