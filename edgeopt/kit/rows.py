"""The rows of a bench's document, one for each thing that was measured, and what they warn of. Nothing is run here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from edgeopt.kit.subjects import Subject
from edgeopt.measurement import Measurement
from edgeopt.measuring.session import Outcome
from edgeopt.profile import BatchCurve, Starts, Sustained
from edgeopt.units import format_fraction

PLACES = ("top1", "top5")
AS_GIVEN = "the samples are whole numbers and go to it as they are: --mean and --std preprocess those of bare models"
UNLIKE_GOLDEN = (
    "the samples are whole numbers and its golden samples are not: they may lack what was done to those beforehand"
)


@dataclass(frozen=True)
class Prepared:
    """A subject with the samples that it is measured on. `inputs` says which: "data", "golden" or "random"."""

    subject: Subject
    samples: Path
    inputs: str
    proof: Optional[Mapping[str, Any]]
    warnings: Tuple[str, ...] = ()

    @property
    def samples_per_inference(self) -> int:
        batch = self.subject.artifact.inputs[0].shape[:1]
        return batch[0] if batch and isinstance(batch[0], int) else 1


@dataclass(frozen=True)
class Alone:
    """What was measured of a subject by itself. None is what was not asked for, or what it failed before."""

    starts: Optional[Starts] = None
    batch_curve: Optional[BatchCurve] = None
    sustained: Optional[Sustained] = None

    def summary(self) -> Dict[str, Any]:
        return self._told(self.batch_curve.summary() if self.batch_curve else None)

    def to_json(self) -> Dict[str, Any]:
        """With raw samples."""
        return self._told(self.batch_curve.to_json() if self.batch_curve else None)

    def _told(self, batch_curve: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
        return {
            "starts": self.starts.to_json() if self.starts else None,
            "batch_curve": batch_curve,
            "sustained": self.sustained.to_json() if self.sustained else None,
        }


def row(
    one: Prepared, outcome: Outcome, found: Optional[Mapping[str, Any]], more: Alone, baseline: str, threads: int
) -> Dict[str, Any]:
    """One row. `found` is its quality, `baseline` the name of what the others are compared with."""
    subject, measured, speedup = one.subject, outcome.measurement, outcome.speedup
    return {
        "id": subject.name,
        "kind": "bundle" if subject.bundle else "model",
        "format": subject.artifact.format,
        "precision": subject.precision,
        "proof": one.proof,
        "inputs": one.inputs,
        **(measured.summary() if measured else _unmeasured(subject, threads)),
        "rounds_measured": len(measured.rounds) if measured else 0,
        "samples_per_inference": one.samples_per_inference,
        **_offline(one, measured, more.batch_curve),
        "speedup": {
            **speedup.speedup.to_json(),
            "against": baseline,
            "verdict": speedup.verdict,
            "reason": speedup.reason,
            "precise": speedup.speedup.is_precise,
        }
        if speedup
        else None,
        "quality": found,
        **more.summary(),
        "warnings": [*one.warnings, *_unlike_recorded(found), *(measured.warnings if measured else ())],
        "error": outcome.error.to_json() if outcome.error else None,
    }


def _unmeasured(subject: Subject, threads: int) -> Dict[str, Any]:
    return {"artifact": subject.artifact.digest, "backend": subject.backend, "threads": threads, "latency_ns": None}


def _offline(one: Prepared, measured: Optional[Measurement], curve: Optional[BatchCurve]) -> Dict[str, Any]:
    """MLPerf's offline scenario: samples per second, call after call, at the best batch size of the curve; without one
    at the batch that the artifact takes, or one."""
    best = curve.offline if curve else None
    if best:
        return {"offline_samples_per_s": best.samples_per_s, "offline_batch": best.batch}
    rate = measured.throughput_per_s if measured else None
    batch = one.samples_per_inference
    return {"offline_samples_per_s": None if rate is None else rate * batch, "offline_batch": batch}


def raw_warnings(subject: Subject, meta: Mapping[str, Any]) -> Iterator[str]:
    """Whole numbers that go unprocessed to a model of floating inputs are likely not what it was trained on."""
    floating = any(spec.dtype.startswith("float") for spec in subject.artifact.inputs)
    whole = any("int" in dtype for _, dtype in meta["inputs"].values())
    if not (floating and whole) or subject.preprocess.mean or subject.preprocess.std:
        return
    if subject.bundle is None:
        yield AS_GIVEN
    elif any(array.dtype.kind == "f" for array in subject.bundle.golden()[0].values()):
        yield UNLIKE_GOLDEN


def _unlike_recorded(found: Optional[Mapping[str, Any]]) -> Iterator[str]:
    """Accuracy that differs from the bundle's own by more than chance explains.

    The normal approximation of the difference of two shares, at 99.9 %: 3.29 standard errors. The samples may be the
    same ones, which only makes a difference by chance less likely.
    """
    stated = (found or {}).get("recorded")
    if found is None or not stated or stated["metric"] != found["metric"] or found["metric"] == "agreement":
        return  # agreement here is with the first path, there with the original
    here, there = found["value"], stated["value"]
    if here is None or there is None:
        return
    share = (here * found["samples"] + there * stated["samples"]) / (found["samples"] + stated["samples"])
    error = math.sqrt(share * (1 - share) * (1 / found["samples"] + 1 / stated["samples"]))
    if abs(here - there) > 3.29 * error:
        yield (
            f"{found['metric']} is {format_fraction(here)} here and was {format_fraction(there)} where it was made, "
            "more than chance explains: are the samples of the same kind?"
        )


def recorded(subject: Subject) -> Optional[Mapping[str, Any]]:
    """The quality that a bundle states, as it was measured where it was made."""
    stated = subject.bundle.measurements if subject.bundle else ()
    found = next((m["quality"] for m in stated if isinstance(m.get("quality"), dict)), None)
    return {key: found.get(key) for key in ("metric", "value", "samples")} if found else None


def metric(subject: Subject) -> str:
    """The metric of labelled data: the bundle's own where it is one of places, else top-1."""
    stated = recorded(subject)
    return str(stated["metric"]) if stated and stated["metric"] in PLACES else PLACES[0]


def quality(
    told: Optional[Mapping[str, Any]], drop: Optional[Mapping[str, Any]], stated: Optional[Mapping[str, Any]]
) -> Dict[str, Any]:
    """As in the documents of `convert`: shares are fractions of one, the drop has a paired 95 % interval."""
    drop = drop or {}
    return {
        "metric": told["metric"] if told else None,
        "value": told["value"] if told else None,
        "samples": told["samples"] if told else None,
        "drop": drop.get("value"),
        "drop_low": drop.get("low"),
        "drop_high": drop.get("high"),
        "sqnr_db": (told["fidelity"] or {}).get("sqnr_db") if told else None,
        "recorded": stated,
        "error": None,
    }
