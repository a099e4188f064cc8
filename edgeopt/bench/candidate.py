"""One candidate in a process of its own: load it, warm it up, then run a block of inferences whenever it is told to.

The process talks with `edgeopt.bench.session` through its channel. It first sends {"ready": {...}}; then each message
{"do": "block", "ns": ..., "calls": ...} is answered with {"block": {...}}, and {"do": "stop"} ends it.

Memory is counted from the moment when the runtime is imported and the inputs are in memory. This module knows nothing
of the other candidates.
"""

from __future__ import annotations

import gc
import importlib
import platform
import time
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError
from edgeopt.samples import Samples, adapt
from edgeopt.worker import Channel

Call = Callable[[], object]

CALLS_BEFORE_PEAK = 4
WINDOW_CALLS, WINDOW_NS = 5, 20_000_000
STEADY = 0.05
MOST_CALLS_OF_A_BLOCK = 4000


def run(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """The job of the worker.

    `args`: backend, main (path), runtime, threads, inputs (of the artifact, as JSON), samples (folder), feeds (how many
    samples to run in turn), warm_up_ns (when to give up on steadiness).
    """
    backend = backends.require(args["backend"])
    channel.progress(0.0, "loading")
    for module in backend.IMPORTS:
        importlib.import_module(module)
    feeds = read_feeds(Path(args["samples"]), [TensorSpec.from_json(spec) for spec in args["inputs"]], args["feeds"])
    gc.collect()
    before = _status_bytes("VmRSS")
    reset = _reset_peak()

    start = time.perf_counter_ns()
    session = backend.load(Path(args["main"]), args["runtime"], args["threads"])
    load_ns = time.perf_counter_ns() - start
    start = time.perf_counter_ns()
    session.run(feeds[0])
    first_inference_ns = time.perf_counter_ns() - start

    calls = [session.bind(feed) for feed in feeds]
    for position in range(CALLS_BEFORE_PEAK):
        calls[position % len(calls)]()
    peak = _status_bytes("VmHWM")
    channel.progress(0.5, "warming up")
    warm_up_calls, steady = warm_up(calls, args["warm_up_ns"])
    channel.send(
        {
            "ready": {
                "load_ns": load_ns,
                "first_inference_ns": first_inference_ns,
                "peak_memory_bytes": max(0, peak - before) if reset and peak and before else None,
                "warm_up_calls": warm_up_calls + CALLS_BEFORE_PEAK,
                "steady": steady,
                "runtime_version": backends.version(backend.DISTRIBUTION),
                "python": platform.python_version(),
            }
        }
    )
    turn = 0
    while True:
        order = channel.receive()
        if order["do"] == "stop":
            return {}
        block, turn = run_block(calls, turn, order["ns"], order["calls"])
        channel.send({"block": block})


def read_feeds(folder: Path, specs: Sequence[TensorSpec], count: int) -> List[Dict[str, Any]]:
    """Up to `count` single samples, evenly over all of them, as the artifact takes them. A fixed batch above one is
    filled with neighbours. Raises InputError where they do not fit."""
    samples = Samples(folder)
    batch = fixed_batch(specs) or 1
    if len(samples) < batch:
        raise InputError(f"the model takes {batch} samples at a time, and there are {len(samples)}")
    last = len(samples) - batch
    count = min(count, last + 1)
    starts = [position * last // max(1, count - 1) for position in range(count)]
    return [adapt(samples.batch(start, start + batch), specs) for start in starts]


def fixed_batch(specs: Sequence[TensorSpec]) -> Optional[int]:
    """The first dimension of the first input where it is a number, None where it is free."""
    first = specs[0].shape[0] if specs and specs[0].shape else None
    return first if isinstance(first, int) else None


def warm_up(calls: Sequence[Call], limit_ns: int) -> Tuple[int, bool]:
    """Run until the medians of two successive windows differ by less than 5 %, or `limit_ns` has passed.

    A window is at least 5 calls and 20 ms. Returns the number of calls, and whether they became steady.
    """
    start, done, last = time.perf_counter_ns(), 0, 0.0
    while True:
        window: List[int] = []
        opened = time.perf_counter_ns()
        while len(window) < WINDOW_CALLS or time.perf_counter_ns() - opened < WINDOW_NS:
            call = calls[done % len(calls)]
            before = time.perf_counter_ns()
            call()
            window.append(time.perf_counter_ns() - before)
            done += 1
        now = median(window)
        if last and abs(now / last - 1) < STEADY:
            return done, True
        if time.perf_counter_ns() - start > limit_ns:
            return done, False
        last = now


def run_block(calls: Sequence[Call], turn: int, budget_ns: int, least: int) -> Tuple[Dict[str, Any], int]:
    """One block: a call that is dropped, then calls until `budget_ns` has passed and `least` are done, at most 4,000.

    Returns the block as `edgeopt.measurement.Block.to_json` gives it, and whose turn is next.
    """
    import resource  # not to be had on Windows, where the rest of this module may still be imported

    usage, whom, clock, count = resource.getrusage, resource.RUSAGE_SELF, time.perf_counter_ns, len(calls)
    latencies: List[int] = []
    switched: List[int] = []
    gc.collect()
    gc.disable()
    try:
        calls[turn % count]()
        cpu = time.process_time_ns()
        opened = now = clock()
        while (now - opened < budget_ns or len(latencies) < least) and len(latencies) < MOST_CALLS_OF_A_BLOCK:
            turn += 1
            call = calls[turn % count]
            switches = usage(whom).ru_nivcsw
            start = clock()
            call()
            now = clock()
            if usage(whom).ru_nivcsw != switches:
                switched.append(len(latencies))
            latencies.append(now - start)
        cpu = time.process_time_ns() - cpu
    finally:
        gc.enable()
    return {"latencies_ns": latencies, "switched": switched, "wall_ns": now - opened, "cpu_ns": cpu}, turn + 1


def _reset_peak() -> bool:
    """Set VmHWM to what is resident now (proc(5), clear_refs). False where the system does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(key: str) -> Optional[int]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None
