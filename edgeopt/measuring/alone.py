"""Jobs that measure one artifact by itself, each in a process of its own: `batches`, `start`, `sustained`.

They take the same arguments as `edgeopt.measuring.candidate:run`, and give what `edgeopt.profile` holds. Nothing else
is measured beside them, so that they say how one artifact behaves, and not which of two is faster.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.conditions import disturbance
from edgeopt.errors import EdgeoptError
from edgeopt.measuring import machine
from edgeopt.measuring.candidate import fixed_batch, read_feeds, run_block, warm_up
from edgeopt.samples import Samples, adapt
from edgeopt.units import format_size, format_time
from edgeopt.worker import Channel, resident_bytes

if TYPE_CHECKING:
    Feeds = Dict[str, Any]

ROUNDS, BLOCK_NS, LEAST_CALLS = 6, 50_000_000, 3
WARM_UP_NS = 1_000_000_000
MOST_NS = 10_000_000_000  # for all rounds of a curve
WINDOW_NS = 100_000_000
TILED = 2  # feeds of each batch size


def batches(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Latency by batch size; `args["batches"]` are the sizes to try, in rising order.

    Sizes are bound and warmed up one after the other, while memory and time allow, and then take turns in random order
    for six rounds, whose blocks last `args["block_ns"]` at the most. A batch is filled with samples, over again where
    there are fewer. Returns a `edgeopt.profile.BatchCurve` as JSON, without points where the artifact's batch is fixed.
    """
    specs = [TensorSpec.from_json(spec) for spec in args["inputs"]]
    fixed = fixed_batch(specs)
    if fixed is not None:
        return {"points": [], "rounds": [], "ended": f"the artifact takes batches of {fixed}, and no others"}
    session, block_ns = _load(args), min(BLOCK_NS, args["block_ns"])
    feeds, ended = _warmed_up(session, specs, args, block_ns, channel)
    rounds: Dict[int, List[Dict[str, Any]]] = {size: [] for size in feeds}
    draw = random.Random(0)
    for number in range(ROUNDS):
        for size in draw.sample(list(feeds), len(feeds)):
            bound = session.bind(feeds[size][0])
            bound()
            rounds[size].append(run_block(bound, feeds[size], number, block_ns, LEAST_CALLS)[0])
        channel.progress((number + 1) / ROUNDS, "measuring batches")
    return {"points": [{"batch": size} for size in feeds], "rounds": list(rounds.values()), "ended": ended}


def _warmed_up(
    session: backends.Session, specs: Sequence[TensorSpec], args: Mapping[str, Any], block_ns: int, channel: Channel
) -> Tuple[Dict[int, List[Feeds]], Optional[str]]:
    """The feeds of each size that works and is worth its time and memory, and why there are no larger ones."""
    samples = Samples(Path(args["samples"]))
    feeds: Dict[int, List[Feeds]] = {}
    spent_ns, resident = 0, resident_bytes(os.getpid()) or 0
    for size in args["batches"]:
        channel.progress(None, f"warming up batches of {size}")
        tried = [_batch(samples, specs, size, part) for part in range(TILED)]
        try:
            bound = session.bind(tried[0])
            first_ns = _time(bound)
            warm_up(bound, tried, min(WARM_UP_NS, 4 * first_ns))
        except EdgeoptError as error:
            return feeds, f"batches of {size} failed: {error.message}"
        spent_ns += ROUNDS * max(block_ns, LEAST_CALLS * _time(bound))
        if spent_ns > MOST_NS and feeds:
            return feeds, f"batches of {size} would take more than {format_time(MOST_NS)} to measure"
        feeds[size] = tried
        before, resident = resident, resident_bytes(os.getpid()) or 0
        more, available = 4 * (resident - before), machine.state().available_memory_bytes
        if available is not None and more > available / 2:
            return feeds, f"batches of {2 * size} would take about {format_size(more)} more memory"
    return feeds, None


def _time(call: Callable[[], object]) -> int:
    began = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - began


def start(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """One start of a fresh process: loading, and the first inference. The runtime is imported, the input in memory.

    The files `args["drop"]` are first dropped from the page cache (posix_fadvise(2), DONTNEED), which needs no rights
    and hits no others. Returns a `edgeopt.profile.Start` as JSON.
    """
    channel.progress(None, "starting afresh")
    feeds, main, load = _imported(args), Path(args["main"]), backends.find(args["backend"]).load
    for path in args["drop"]:
        _drop(Path(path))
    before = _read_bytes()
    began = time.perf_counter_ns()
    session = load(main, args["runtime"], args["threads"])
    loaded = time.perf_counter_ns()
    session.run(feeds[0])
    ended, after = time.perf_counter_ns(), _read_bytes()
    return {
        "load_ns": loaded - began,
        "first_inference_ns": ended - loaded,
        "read_bytes": None if before is None or after is None else after - before,
    }


def sustained(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Inferences back to back for `args["ns"]`, in windows. Returns a `edgeopt.profile.Sustained` as JSON."""
    feeds, session = _imported(args), _load(args)
    bound = session.bind(feeds[0])
    warm_up(bound, feeds, args["warm_up_ns"])
    before = machine.state()
    windows: List[Dict[str, int]] = []
    began, turn = time.perf_counter_ns(), 0
    while (at_ns := time.perf_counter_ns() - began) < args["ns"]:
        block, turn = run_block(bound, feeds, turn, WINDOW_NS, 1)
        everything, switched = block["latencies_ns"], set(block["switched"])
        clean = [ns for index, ns in enumerate(everything) if index not in switched]
        windows.append(
            {
                "at_ns": at_ns,
                "calls": len(everything),
                "clean_calls": len(clean),
                "p50_ns": int(median(clean or everything)),
                "slowest_ns": max(everything),
            }
        )
        channel.progress(min(1.0, at_ns / args["ns"]), "running back to back")
    between = disturbance(before, machine.state())
    return {"windows": windows, "throttled": between.throttled, "temperature_c": between.temperature_c}


def _imported(args: Mapping[str, Any]) -> List[Feeds]:
    """The runtime imported; single samples in memory."""
    for module in backends.require(args["backend"]).IMPORTS:
        importlib.import_module(module)
    feeds = read_feeds(Path(args["samples"]), [TensorSpec.from_json(spec) for spec in args["inputs"]], args["feeds"])
    gc.collect()
    return feeds


def _load(args: Mapping[str, Any]) -> backends.Session:
    return backends.require(args["backend"]).load(Path(args["main"]), args["runtime"], args["threads"])


def _batch(samples: Samples, specs: Sequence[TensorSpec], size: int, part: int) -> Feeds:
    """`size` samples from the `part`-th piece of all on, over again where there are fewer."""
    import numpy as np

    count = min(size, len(samples))
    first = min(part * count, len(samples) - count)
    rows = samples.batch(first, first + count)
    return adapt({name: np.resize(value, (size, *value.shape[1:])) for name, value in rows.items()}, specs)


def _drop(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return  # macOS: nothing tells there either whether the file came from the disk
    with suppress(OSError), open(path, "rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_bytes() -> Optional[int]:
    """What this process has had read from a disk (proc(5), io)."""
    with suppress(OSError):
        for line in Path("/proc/self/io").read_text().splitlines():
            if line.startswith("read_bytes: "):
                return int(line.split()[1])
    return None
