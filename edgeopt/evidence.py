"""What a run found out, read back from its directory, or from the small file that stands for it in a repository.

A run directory holds every raw sample: times are computed from those again, and have to be what the run itself said.
A baseline file holds the numbers alone, with their intervals: a few KB, the same bytes for the same run.

A `Reading` has an interval where a number was measured more than once. That of a latency is the wider of two: of the
order statistics, which take calls for independent, and of 1,000 bootstrap resamples of whole rounds, which do not
(Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8). What no interval here knows is how a
machine differs from one session to the next.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt import __version__, jsontext
from edgeopt.budget import QUANTITIES, Budget, Limit
from edgeopt.conditions import Machine
from edgeopt.errors import BudgetError, InputError
from edgeopt.measurement import Measurement
from edgeopt.nearby import nearby
from edgeopt.statistics import CONFIDENCE, LEAST_ROUNDS, PERCENTILES

KIND = "edgeopt baseline"
SCHEMA = 1
LARGEST_BASELINE_BYTES = 8 << 20
RESAMPLES = 1000
SPEEDUP = "speed-up"  # over the original, in the same session
ACCURACY = "accuracy"  # the recipe's metric, where that is a share of the samples
LATENCIES = {f"latency {name}": name for name in PERCENTILES}


@dataclass(frozen=True)
class Reading:
    """A number in its quantity's unit (ns, bytes, a fraction of one, dB, per second), None where it was not measured.

    `low` and `high` bound it at 95 % where that is known. `value` is infinite for the sqnr of equal outputs.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        if self.value == math.inf:
            return {"exact": True}
        told = {"value": _number(self.value), "low": _number(self.low), "high": _number(self.high)}
        return {name: number for name, number in told.items() if number is not None}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Reading:
        found = Reading(*(_is_number(value.get(key), key) for key in ("value", "low", "high")))
        return Reading(math.inf) if value.get("exact") else found


@dataclass(frozen=True)
class Evidence:
    """One candidate. `readings` are by quantity; `clean` says that its times are of calls that were not switched out.

    `status` is that of the run ("chosen", "inside", "outside", "failed", "skipped"), `reasons` why.
    """

    id: str
    status: str
    reasons: tuple[str, ...] = ()
    artifact: str | None = None
    backend: str | None = None
    runtime_version: str | None = None
    threads: int | None = None
    rounds: int = 0
    clean: bool = False
    metric: str | None = None
    samples: int | None = None
    against: str | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)

    def value(self, quantity: str) -> float | None:
        found = self.readings.get(quantity)
        return found.value if found else None

    def to_json(self) -> dict[str, Any]:
        """Of a measured candidate: what a later run is compared with."""
        return {
            "id": self.id,
            "backend": self.backend,
            "runtime_version": self.runtime_version,
            "artifact": self.artifact,
            "threads": self.threads,
            "rounds": self.rounds,
            "clean": self.clean,
            "metric": self.metric,
            "samples": self.samples,
            "against": self.against,
            "readings": {
                name: reading.to_json() for name, reading in self.readings.items() if reading.value is not None
            },
        }


@dataclass(frozen=True)
class Record:
    """A run, or what a baseline file keeps of one. `place` is where it was read; `lines` of candidates in it."""

    place: str
    recipe: str
    target: str
    winner: str | None
    why: str
    nearest: str | None
    budget: Budget
    machine: Machine | None
    candidates: Mapping[str, Evidence]
    lines: Mapping[str, int] = field(default_factory=dict)


def read_run(folder: Path, *, candidate: str | None = None, every: bool = False) -> Record:
    """A run directory. Intervals take time: they are those of `candidate`, or of the winner, or of `every` one.

    Raises InputError where it is none, or where its files contradict each other.
    """
    choice, measured = read_result(folder)
    with undamaged(folder / "choice.json"):
        return _record(choice, measured, folder, candidate, every)


def read_result(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Measurement]]:
    """choice.json, and the measurements by candidate. Raises InputError where the folder is no run, or they contradict
    each other."""
    path = folder / "choice.json"
    choice = read_json(path)
    if choice.get("schema") != SCHEMA or "candidates" not in choice:
        raise InputError("this is no result of `edgeopt convert`", where=str(path))
    with undamaged(path):
        names = [row["id"] for row in choice["candidates"] if row.get("latency_ns")]
        measured = _measurements(folder / "measurements.jsonl")
        if len(names) != len(measured):
            raise _contradiction(
                folder, f"{len(names)} candidates were measured, and {len(measured)} measurements are there"
            )
        return choice, dict(zip(names, measured, strict=True))


@contextlib.contextmanager
def undamaged(place: Path) -> Iterator[None]:
    """What is read in here of a result is there, and of its kind: else InputError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this result is damaged: {error!r}", where=str(place)) from None


def _record(
    choice: Mapping[str, Any], by_id: Mapping[str, Measurement], folder: Path, candidate: str | None, every: bool
) -> Record:
    measured = list(by_id.values())
    wanted = candidate or choice["winner"]
    found = {
        row["id"]: _evidence(
            row,
            by_id.get(row["id"]),
            folder,
            intervals=every or row["id"] == wanted,
            original=row["id"] == choice["baseline"],
        )
        for row in choice["candidates"]
    }
    machine = measured[0].machine if measured else None
    limits = tuple(Limit(name, bound) for name, bound in choice["budget"]["limits"].items())
    if choice["winner"] is not None and choice["winner"] not in by_id:
        raise ValueError(f"the winner {choice['winner']!r} was not measured")
    if unknown := {limit.quantity for limit in limits} - QUANTITIES.keys():
        raise ValueError(f"unknown quantities {sorted(unknown)}")
    return Record(
        place=str(folder),
        recipe=choice["recipe"],
        target=choice["target"],
        winner=choice["winner"],
        why=choice["why"],
        nearest=choice["nearest"],
        budget=Budget(limits, tuple(choice["budget"]["prefer"])),
        machine=machine,
        candidates=found,
    )


def baseline_text(record: Record) -> str:
    """The file to commit: one candidate a line, sorted by name. Raises BudgetError for a run without a winner."""
    if record.winner is None or record.machine is None:
        raise BudgetError(
            f"{record.place} has no winner, and so nothing to hold later runs against",
            remedy="Make one with a run whose exit code is 0.",
        )
    head = {
        "schema": SCHEMA,
        "kind": KIND,
        "edgeopt": __version__,
        "recipe": record.recipe,
        "target": record.target,
        "winner": record.winner,
        "machine": record.machine.to_json(),
    }
    kept = sorted((found for found in record.candidates.values() if found.readings), key=lambda found: found.id)
    lines = ",\n".join(" " + _compact(found.to_json()) for found in kept)
    told = ",\n".join(f'"{key}": {_compact(value)}' for key, value in head.items())
    return f'{{{told},\n"candidates": [\n{lines}\n]}}\n'


def parse_baseline(text: str, place: str) -> Record:
    """What `baseline_text` wrote. Raises InputError where it is something else."""
    try:
        value = jsontext.parse(text)
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=place, remedy=REMEDY) from None
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError("this is no baseline", where=place, remedy=REMEDY)
    if value.get("schema") != SCHEMA:
        raise InputError(f"a baseline of schema {value.get('schema')!r}: this edgeopt reads {SCHEMA}", where=place)
    try:
        found = [_evidence_from_json(one) for one in value["candidates"]]
        record = Record(
            place=place,
            recipe=str(value["recipe"]),
            target=str(value["target"]),
            winner=str(value["winner"]),
            why="",
            nearest=None,
            budget=Budget(),
            machine=Machine.from_json(value["machine"]),
            candidates={one.id: one for one in found},
            lines=_lines(text, [one.id for one in found]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"this baseline is damaged: {error!r}", where=place, remedy=REMEDY) from None
    if record.winner not in record.candidates:
        raise InputError(f"its winner {record.winner!r} is not among its candidates", where=place, remedy=REMEDY)
    return record


REMEDY = "`edgeopt baseline RUN -o FILE` writes one."


def _evidence(
    row: Mapping[str, Any], measured: Measurement | None, folder: Path, *, intervals: bool, original: bool
) -> Evidence:
    name, quality = row["id"], row.get("quality")
    reasons, status = tuple(row.get("reasons", ())), row["status"]
    if measured is None:
        return Evidence(name, status, reasons, readings={})
    artifact = row["artifact"]["digest"] if row["artifact"] else None
    latency = measured.latency
    for percentile, found in latency.percentiles.items():
        told = row["latency_ns"][percentile]
        if measured.artifact != artifact or (found.value if found else None) != (told["value"] if told else None):
            raise _contradiction(folder, f"of {name} they tell {percentile} {told}, and the samples give {found}")
    bounds = _bounds(measured, latency.basis) if intervals else {}
    readings = {
        quantity: Reading(p.value, *_wider(p.low, p.high, bounds.get(short))) if p else Reading(None)
        for quantity, short in LATENCIES.items()
        for p in [latency.percentiles[short]]
    }
    readings["throughput"] = Reading(measured.throughput_per_s)
    readings["cold start"] = Reading(measured.load_ns + measured.first_inference_ns)
    readings["peak memory"] = Reading(measured.peak_memory_bytes)
    readings["size"] = Reading(row["artifact"]["size_bytes"] if row["artifact"] else None)
    readings["cpu operators"] = Reading((row.get("placement") or {}).get("left_to_cpu"))
    readings |= _qualities(quality) if quality else {}
    speedup = row.get("speedup") or ({"value": 1, "low": 1, "high": 1, "against": name} if original else None)
    if speedup:
        readings[SPEEDUP] = Reading(speedup["value"], speedup["low"], speedup["high"])
    return Evidence(
        id=name,
        status=status,
        reasons=reasons,
        artifact=artifact,
        backend=measured.backend,
        runtime_version=measured.runtime_version,
        threads=measured.threads,
        rounds=len(measured.rounds),
        clean=latency.basis == "clean",
        metric=quality["metric"] if quality else None,
        samples=quality["samples"] if quality else None,
        against=speedup["against"] if speedup else None,
        readings=readings,
    )


def _qualities(quality: Mapping[str, Any]) -> dict[str, Reading]:
    share = quality["value"] if quality["metric"] != "sqnr" else None
    return {
        ACCURACY: _share(share, quality["samples"]),
        "accuracy drop": Reading(quality["drop"], quality["drop_low"], quality["drop_high"]),
        "fidelity": _share(quality["fidelity"], quality["samples"]),
        "sqnr": Reading(math.inf if quality["exact"] else quality["sqnr_db"]),
    }


def _share(value: float | None, samples: int) -> Reading:
    """A share of samples with its score interval (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212)."""
    if value is None or samples < 1:
        return Reading(value)
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (value + z * z / (2 * samples)) / (1 + z * z / samples)
    spread = z / (1 + z * z / samples) * math.sqrt(value * (1 - value) / samples + z * z / (4 * samples**2))
    return Reading(value, max(0.0, min(value, middle - spread)), min(1.0, max(value, middle + spread)))


def _bounds(measured: Measurement, basis: str) -> dict[str, tuple[float, float]]:
    """The bootstrap interval of each percentile: whole rounds are drawn anew, their calls stay together."""
    import numpy as np

    rounds = [block.clean_ns if basis == "clean" else block.latencies_ns for block in measured.rounds]
    rounds = [calls for calls in rounds if calls]
    if len(rounds) < LEAST_ROUNDS:
        return {}
    pooled = np.concatenate([np.asarray(calls, np.int64) for calls in rounds])
    owner = np.repeat(np.arange(len(rounds)), [len(calls) for calls in rounds])
    order = np.argsort(pooled, kind="stable")
    pooled, owner = pooled[order], owner[order]
    draw = random.Random(0)  # numpy's own streams may change between its versions
    found: dict[str, list[int]] = {name: [] for name in PERCENTILES}
    for _ in range(RESAMPLES):
        weights = np.bincount(draw.choices(range(len(rounds)), k=len(rounds)), minlength=len(rounds))
        up_to = np.cumsum(weights[owner])
        for name, q in PERCENTILES.items():
            found[name].append(int(pooled[np.searchsorted(up_to, math.ceil(q * up_to[-1] - 1e-9))]))
    cut = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return {name: (sorted(values)[cut], sorted(values)[-1 - cut]) for name, values in found.items()}


def _wider(low: int | None, high: int | None, bounds: tuple[float, float] | None) -> tuple[float | None, float | None]:
    if bounds is None:
        return None, None
    return (None if low is None else min(low, bounds[0])), (None if high is None else max(high, bounds[1]))


_TEXT = (str, type(None))
_FIELDS: dict[str, Any] = {
    "id": str,
    "artifact": _TEXT,
    "backend": _TEXT,
    "runtime_version": _TEXT,
    "threads": int,
    "rounds": int,
    "clean": bool,
    "metric": _TEXT,
    "samples": (int, type(None)),
    "against": _TEXT,
}


def _evidence_from_json(value: Mapping[str, Any]) -> Evidence:
    for name, kinds in _FIELDS.items():
        if not isinstance(value[name], kinds) or (isinstance(value[name], bool) and kinds is not bool):
            raise ValueError(f"{name} is {value[name]!r}")
    readings = {str(name): Reading.from_json(reading) for name, reading in value["readings"].items()}
    unknown = readings.keys() - {*QUANTITIES, SPEEDUP, ACCURACY}
    if unknown:
        raise ValueError(f"unknown quantities {sorted(unknown)}")
    return Evidence(status="kept", **{name: value[name] for name in _FIELDS}, readings=readings)


def _measurements(path: Path) -> list[Measurement]:
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", remedy="Give the whole folder that a run wrote.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            try:
                found.append(Measurement.from_line(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"this is no measurement: {error!r}", where=f"{path}:{number}") from None
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run's folder. Raises InputError where there is none, or it is something else."""
    folder = path.parent
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "is not there"
        raise InputError(f"{folder} {what}", remedy=nearby(folder) or "Give the folder that `edgeopt convert` wrote.")
    try:
        found = jsontext.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "Give the folder that `edgeopt convert` wrote, such as runs/fashion-mnist-1."
        raise InputError(f"{folder} is no run: it has no {path.name}", remedy=remedy) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InputError("this is no result of `edgeopt convert`", where=str(path))
    return found


def _contradiction(folder: Path, what: str) -> InputError:
    return InputError(
        f"choice.json and measurements.jsonl contradict each other: {what}",
        where=str(folder),
        remedy="These files are not of one run: take them as `edgeopt convert` wrote them.",
    )


def _lines(text: str, names: Sequence[str]) -> dict[str, int]:
    """The line of each candidate, where it has one of its own as `baseline_text` writes it."""
    starts = {f'{{"id":{_compact(name)},': name for name in names}
    found = {}
    for number, line in enumerate(text.split("\n"), 1):
        for start, name in starts.items():
            if line.strip().startswith(start):
                found[name] = number
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _number(value: float | None) -> float | int | None:
    """With six significant digits; whole numbers as they are."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def _is_number(value: Any, name: str) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value
