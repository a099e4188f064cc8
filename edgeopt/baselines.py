"""Where a baseline comes from: a file, a revision of a file in Git, or a run's folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

from edgeopt import evidence, yaml
from edgeopt.budget import QUANTITIES
from edgeopt.errors import InputError, MissingDependency
from edgeopt.evidence import Record

GIT_SECONDS = 60


def read(text: str, candidate: str | None = None) -> Record:
    """The baseline that `text` names: a path, or "REV:PATH" as Git takes it. A path that is there goes first.

    Raises InputError where it is none, MissingDependency where a revision is named and there is no git.
    """
    path = Path(text)
    try:
        if path.is_dir():
            return evidence.read_run(path, candidate=candidate)
        if path.is_file():
            return evidence.parse_baseline(_text(path), text)
    except ValueError:
        raise InputError(f"--baseline {text!r} is not the name of a file") from None
    revision, colon, name = text.partition(":")
    if not colon:
        raise InputError(
            f"--baseline {text}: no such file or folder",
            remedy="`edgeopt baseline RUN -o FILE` writes one; of an earlier commit it is REV:PATH.",
        )
    if not revision or not name or text.startswith("-"):
        raise InputError(f"--baseline {text!r}: write a revision like main:baselines/net.json")
    return evidence.parse_baseline(_show(text), text)


def budget_lines(recipe: Path) -> dict[str, int]:
    """The line of each limit in a recipe's file, by quantity. Raises InputError where it is no recipe."""
    document = yaml.load(recipe)
    found = {place[1]: line for place, line in document.lines.items() if len(place) == 2 and place[0] == "budget"}
    return {
        "latency p50" if name == "latency" else name: line
        for name, line in found.items()
        if name in (*QUANTITIES, "latency")
    }


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > evidence.LARGEST_BASELINE_BYTES:
            raise InputError("this is too large for a baseline", where=str(path))
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8", remedy=evidence.REMEDY) from None


def _show(spec: str) -> str:
    """The content of REV:PATH. `git cat-file` runs no filter and no pager."""
    try:
        done = subprocess.run(["git", "cat-file", "blob", spec], capture_output=True, timeout=GIT_SECONDS, check=False)
    except FileNotFoundError:
        raise MissingDependency(f"--baseline {spec} needs git, which is not installed") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"--baseline {spec}: git did not answer within {GIT_SECONDS} s") from None
    if done.returncode != 0:
        told = (done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[0]
        raise InputError(
            f"--baseline {spec}: {told.removeprefix('fatal: ')}",
            remedy="A path is from the repository's root, or ./ from here. A shallow clone has one commit.",
        )
    try:
        return done.stdout.decode()
    except UnicodeDecodeError:
        raise InputError(f"{spec} is not text in UTF-8", remedy=evidence.REMEDY) from None
