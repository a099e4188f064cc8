"""Two files of measurements side by side: the same artifact, measured in another session, perhaps another week.

Sessions do not share their rounds, so the rounds of each are resampled alone, and less is claimed: differences under
5 % are a tie (five sessions of the same artifact on a busy machine gave medians of clean calls 5 % apart). It knows
nothing of what changed in between beyond what the measurements tell of machine, runtime and threads, and the interval
covers the rounds of two sessions, not how sessions differ: a machine in another state looks like other software.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from edgeopt import __version__, jsontext
from edgeopt.errors import InputError, UnlikeMachines
from edgeopt.measurement import LEAST_CLEAN_CALLS_OF_A_ROUND, Block, Measurement, require_alike
from edgeopt.nearby import nearby
from edgeopt.statistics import LEAST_ROUNDS, Ratio, unpaired_ratio, verdict

SCHEMA = 1
MARGIN = 0.05
REMEDY = "Measure both on one machine with the same settings, or see them side by side with --unlike."


@dataclass(frozen=True)
class Line:
    """One measurement of a file. `id` is None in files that do not tell."""

    id: Optional[str]
    measurement: Measurement

    @property
    def name(self) -> str:
        return self.id or f"{self.measurement.backend} {self.measurement.artifact[:12]}"


def compare(a: Path, b: Path, *, unlike: bool = False) -> Dict[str, Any]:
    """How b stands beside a, for everything in both: the same artifact on the same backend, else the same name.

    Raises InputError where a file is no measurements and where nothing is in both, UnlikeMachines where the machines,
    or the threads, differ and not `unlike`.
    """
    ours, theirs = read(a), read(b)
    pairs = list(_pairs(ours, theirs))
    if not pairs:
        raise InputError(
            f"{a} and {b} have no artifact and no name in common",
            remedy=f"Measured are {_names(ours)}, and {_names(theirs)}.",
        )
    different: Dict[str, None] = {}
    for one, other in pairs:
        try:
            require_alike(one.measurement, other.measurement)
        except UnlikeMachines as error:
            if not unlike:
                error.where, error.remedy = str(b), REMEDY
                raise
            different[error.message.partition(": ")[2]] = None
    matched = {id(line) for pair in pairs for line in pair}
    return {
        "schema": SCHEMA,
        "edgeopt": __version__,
        "a": str(a),
        "b": str(b),
        "unlike": list(different),
        "comparisons": [_row(one, other) for one, other in pairs],
        "only_a": [line.name for line in ours if id(line) not in matched],
        "only_b": [line.name for line in theirs if id(line) not in matched],
    }


def read(path: Path) -> List[Line]:
    """The measurements of a .jsonl file. Raises InputError naming the line that is none."""
    if path.is_dir() and (path / "measurements.jsonl").is_file():
        path = path / "measurements.jsonl"
    if not path.is_file():
        raise InputError("no such file", where=str(path), remedy=nearby(path, "Give what bench -o wrote."))
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path), remedy="Give what bench -o wrote.") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = jsontext.parse(line)
            measurement = Measurement.from_json(value)
            if not measurement.rounds or not all(block.latencies_ns for block in measurement.rounds):
                raise ValueError("a round without calls")
            found.append(Line(value.get("id"), measurement))
        except InputError as error:
            error.where, error.remedy = f"{path}:{number}", "Update edgeopt here."
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not a measurement: {type(error).__name__}: {error}",
                where=f"{path}:{number}",
                remedy="Give what bench -o wrote, or a run's measurements.jsonl.",
            ) from None
    if not found:
        raise InputError("there are no measurements in it", where=str(path), remedy="Give what bench -o wrote.")
    return found


def _pairs(ours: Sequence[Line], theirs: Sequence[Line]) -> Iterator[Tuple[Line, Line]]:
    left = list(theirs)
    for one in ours:
        made = (one.measurement.artifact, one.measurement.backend)
        same = [other for other in left if (other.measurement.artifact, other.measurement.backend) == made]
        same = [other for other in same if other.id == one.id] or same
        other = next(iter(same or [other for other in left if one.id is not None and other.id == one.id]), None)
        if other is not None:
            left.remove(other)
            yield one, other


def _row(one: Line, other: Line) -> Dict[str, Any]:
    a, b = one.measurement, other.measurement
    found = verdict(between_sessions(a.rounds, b.rounds), margin=MARGIN)
    return {
        "id": other.name,
        "same_artifact": a.artifact == b.artifact,
        "a": a.summary(),
        "b": b.summary(),
        "speedup": {**found.speedup.to_json(), "verdict": found.verdict, "reason": found.reason},
    }


def between_sessions(a_rounds: Sequence[Block], b_rounds: Sequence[Block]) -> Ratio:
    """How many times as long as b does a take: the ratio of the medians of the rounds' medians, of clean calls.

    Where too few rounds of either have clean calls, all calls of both are taken, and the basis says so. The interval is
    that of `edgeopt.statistics.unpaired_ratio`.
    """
    a, b = _medians(a_rounds, clean=True), _medians(b_rounds, clean=True)
    if all(len(c) >= max(LEAST_ROUNDS, len(r) / 2) for c, r in ((a, a_rounds), (b, b_rounds))):
        return unpaired_ratio(a, b, "clean")
    return unpaired_ratio(_medians(a_rounds, clean=False), _medians(b_rounds, clean=False), "all")


def _medians(rounds: Sequence[Block], *, clean: bool) -> List[float]:
    if not clean:
        return [median(block.latencies_ns) for block in rounds]
    return [median(b.clean_ns) for b in rounds if len(b.clean_ns) >= LEAST_CLEAN_CALLS_OF_A_ROUND]


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(line.name for line in lines[:3])
