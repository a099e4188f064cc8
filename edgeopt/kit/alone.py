"""What an artifact is put through by itself, after the session: starts, the batch curve, sustained load.

The jobs are those of `edgeopt.measuring.alone`; here they are called, here or wherever `call` runs them, and what
they give becomes values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence

from edgeopt.profile import BatchCurve, Start, Starts, Sustained

JOBS = "edgeopt.measuring.alone"
STARTS = 3  # of each kind
SAMPLES = 8  # in turn
STAYED = "its files stay in the page cache: their file system does not let go of them, or another process uses them"

Call = Callable[[str, Mapping[str, Any]], Dict[str, Any]]


def starts(args: Mapping[str, Any], files: Sequence[Path], call: Call) -> Starts:
    """Starts of fresh processes with the artifact's files in the page cache and dropped from it, in turn.

    That they were dropped is believed where half of the bytes came from the disk again.
    """
    found: Dict[bool, List[Start]] = {True: [], False: []}
    size_bytes = sum(path.stat().st_size for path in files)
    for _ in range(STARTS):
        for drop, ones in found.items():
            dropped = [str(path) for path in files] if drop else []
            ones.append(Start(**call(f"{JOBS}:start", {**args, "drop": dropped})))
    if any(one.read_bytes is None for one in found[True]):
        return Starts(tuple(found[False]), (), "what is read from the disk is not told here")
    if any((one.read_bytes or 0) < size_bytes / 2 for one in found[True]):
        return Starts(tuple(found[False]), (), STAYED)
    return Starts(tuple(found[False]), tuple(found[True]))


def batch_curve(args: Mapping[str, Any], batches: Sequence[int], call: Call) -> BatchCurve:
    """Latency by batch size, for sizes in rising order."""
    return BatchCurve.from_json(call(f"{JOBS}:batches", {**args, "batches": sorted(set(batches))}))


def sustained(args: Mapping[str, Any], ns: int, call: Call) -> Sustained:
    """Inferences back to back for `ns`."""
    return Sustained.from_json(call(f"{JOBS}:sustained", {**args, "ns": ns}))
