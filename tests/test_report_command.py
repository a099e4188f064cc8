"""edgeopt report: what it writes, and what it says of a folder that is no whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import command
import pytest
from test_report_page import RUN, measured
from test_reports import result
from test_startup import VENDORS, loaded

from edgeopt.__main__ import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the files that a report is drawn from."""
    folder = tmp_path / "run"
    folder.mkdir()
    document = result()
    (folder / "choice.json").write_text(json.dumps(document))
    lines = [measurement.to_line() + "\n" for measurement in measured(document).values()]
    (folder / "measurements.jsonl").write_text("".join(lines))
    (folder / "run.json").write_text(json.dumps(RUN))
    return folder


def test_it_loads_no_heavy_library(run: Path, tmp_path: Path) -> None:
    packages, _, _ = loaded("report", str(run), cache=tmp_path)
    assert not packages & {*VENDORS, "numpy"}


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_it_writes_the_page_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.startswith(f"{run}/report.html: ")


def test_it_writes_where_it_is_told_and_says_so_in_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = run.parent / "new" / "page.html"
    assert main(["report", str(run), "-o", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"schema": 1, "path": str(page), "size_bytes": page.stat().st_size}
    assert not (run / "report.html").exists()


def test_markdown_is_the_other_report(run: Path) -> None:
    assert main(["report", str(run), "--markdown"]) == 0
    assert (run / "report.md").read_text().startswith("# r on host")


def test_a_run_of_before_that_tells_less_has_a_page_too(run: Path) -> None:
    """The first runs had no import, no digests of data, and no word on placement or search."""
    choice = json.loads((run / "choice.json").read_text())
    for field in ("search", "pruned", "time_limit_seconds"):
        choice.pop(field, None)
    for candidate in choice["candidates"]:
        candidate.pop("placement", None)
    (run / "choice.json").write_text(json.dumps(choice))
    change(run / "run.json", data={"validation": {"location": "/a/v.npz", "samples": None, "seed": 0}})
    assert main(["report", str(run)]) == 0
    assert "v.npz" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("choice.json", "is no run: it has no choice.json"),
        ("measurements.jsonl", "measurements.jsonl cannot be read"),
        ("run.json", "is no run: it has no run.json"),
    ],
)
def test_half_a_run_is_refused(run: Path, name: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    assert main(["report", str(run)]) == 2
    assert told in capsys.readouterr().err
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("choice.json", {"schema": 2}, "no result of `edgeopt convert`"),
        ("choice.json", {"candidates": 7}, "damaged"),
        ("choice.json", {"budget": {}}, "damaged"),
        ("choice.json", {"candidates": []}, "contradict"),
        ("run.json", {"steps": [{"id": "import"}]}, "damaged"),
    ],
)
def test_a_damaged_run_is_a_users_mistake_and_no_bug(
    run: Path, name: str, changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(run / name, **changes)
    assert main(["report", str(run)]) == 2
    assert told in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "-o", "/proc/x.html"]) == 2
    assert "/proc/x.html cannot be written" in capsys.readouterr().err


def test_convert_writes_the_page_that_the_files_alone_give(tmp_path: Path) -> None:
    folder = command.project(tmp_path / "project", command.ONE_CANDIDATE)
    found = command.convert(folder, tmp_path / "cache")
    again = tmp_path / "again.html"
    assert main(["report", found["run"], "-o", str(again)]) == 0
    assert again.read_text() == (Path(found["run"]) / "report.html").read_text()
