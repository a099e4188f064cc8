"""What was damaged after it was written is noticed, named, and built again or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import command
import pytest
from command import ONE_CANDIDATE, convert, project

from edgeopt.__main__ import main
from edgeopt.store import SCHEMA, Store, _seal


def damaged(entry: Path, kind: str) -> None:
    """Damage one entry of the store."""
    file = max((path for path in (entry / "files").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    if kind == "bit":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 4]) + content[-8:])
    elif kind == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "gone":
        file.unlink()
    elif kind == "garbage":
        (entry / "entry.json").write_bytes(b"\xff\x00{[")
    elif kind == "list":
        (entry / "entry.json").write_text("[1, 2]")
    elif kind == "older":
        record = {**json.loads((entry / "entry.json").read_text()), "schema": SCHEMA - 1}
        del record["sha256"]
        (entry / "entry.json").write_text(json.dumps({**record, "sha256": _seal(record)}))
    else:
        told = (entry / "entry.json").read_text()
        (entry / "entry.json").write_text(told.replace('"seconds": ', '"seconds": 1', 1))


KINDS = {
    "bit": "is not what its sha256 says",
    "truncated": "bytes, not",
    "gone": "No such file",
    "garbage": "entry.json cannot be read",
    "list": "entry.json is not what was written",
    "digit": "entry.json is not what was written",
    "older": "entry.json has schema 0, this edgeopt reads schema 1",
}


@pytest.mark.fault(
    "an entry of the cache that is damaged, or of an older version",
    "a bit flipped, a file cut in half or gone; its record garbage, other JSON, changed by a digit, or of schema 0",
    "`edgeopt cache verify` names each (exit code 4); the next run drops it, says so, and builds the same bytes again",
)
def test_damaged_entries_are_named_dropped_and_built_again(tmp_path, monkeypatch, capsys, injections):
    """Each entry of a finished run is damaged in one way or another, and the next run makes what the first one made."""
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    monkeypatch.setenv("EDGEOPT_CACHE", str(cache))
    first = convert(folder, cache)
    entries = sorted((cache / "entries").iterdir())
    kinds = [list(KINDS)[number % len(KINDS)] for number in injections(len(entries), 7 * len(entries))]
    for start in range(0, len(kinds), len(entries)):
        for entry, kind in zip(entries, kinds[start:], strict=False):
            damaged(entry, kind)
        assert main(["cache", "verify", "--json"]) == 4
        told = {one["key"]: one["what"] for one in json.loads(capsys.readouterr().out)["damaged"]}
        assert all(KINDS[kind] in told[entry.name] for entry, kind in zip(entries, kinds[start:], strict=False))
        again = convert(folder, cache)
        assert command.digests(again) == command.digests(first)
        assert command.built(again) == set(command.digests(first))
        assert any("cache entries were damaged, and built again" in told for told in again["warnings"])
        assert not Store(cache).verify()[1]
    assert not any("damaged" in told for told in convert(folder, cache)["warnings"])


def test_a_sound_cache_verifies(run, monkeypatch, capsys):
    monkeypatch.setenv("EDGEOPT_CACHE", str(run.parents[2] / "cache"))
    assert main(["cache", "verify"]) == 0
    assert "none is damaged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    base = tmp_path_factory.mktemp("run")
    return Path(convert(project(base / "p", ONE_CANDIDATE), base / "cache")["run"])


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


READERS = {"choice.json": ["check"], "measurements.jsonl": ["check"], "run.json": ["convert", "--reproduce"]}


@pytest.mark.fault(
    "a run that was copied half",
    "each of choice.json, measurements.jsonl and run.json missing, or cut in half",
    "`check` and `convert --reproduce` refuse it and name the file (exit code 2)",
)
@pytest.mark.parametrize("harm", [remove, halve])
@pytest.mark.parametrize("name", READERS)
def test_a_run_copied_half_is_refused(run, tmp_path, capsys, name, harm):
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    harm(copy / name)
    assert main([*READERS[name], str(copy)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.fault(
    "a bundle with a file missing, cut in half, or changed by a bit",
    "each of its files in each of these ways, but for bits of the manifest, which only a signature holds",
    "`edgeopt verify` refuses it and names the file (exit code 4, without its manifest 2)",
)
def test_a_bundle_with_one_file_missing_or_changed_is_refused(run, tmp_path, capsys, injections):
    names = sorted(path.name for path in (run / "best").iterdir())
    harms = [(name, harm) for name in names for harm in (remove, halve)]
    harms += [(name, flip) for name in names if name != "edgeopt.json"]  # that one is for a signature to hold
    for number in injections(len(harms), len(harms)):
        name, harm = harms[number]
        copy = Path(shutil.copytree(run / "best", tmp_path / f"best-{number}"))
        harm(copy / name)
        assert main(["verify", str(copy)]) in ((2, 4) if name == "edgeopt.json" else (4,))
        assert name in capsys.readouterr().err


def test_a_damaged_hint_costs_a_build_and_no_more(tmp_path):
    folder, cache = (
        project(tmp_path / "p", ONE_CANDIDATE.replace("validation.npz", "data.py:samples")),
        tmp_path / "cache",
    )
    (folder / "data.py").write_text(
        "import numpy\n\ndef samples():\n    return {'x': numpy.ones((60, 3, 16, 16), 'float32')}\n"
    )
    first = convert(folder, cache)
    for hint in (cache / "hints").iterdir():
        hint.write_text('{"sources": 5}')
    assert command.digests(convert(folder, cache)) == command.digests(first)
