"""One candidate in a process of its own: load it, warm it up, then run a block of inferences whenever it is told to.

The process talks with `edgeopt.measuring.session` through its channel. It first sends {"ready": {...}}; then each
message {"do": "block", "ns": ..., "calls": ...} is answered with {"block": {...}}, and {"do": "stop"} ends it.

An inference has one set of buffers, bound once. Before each call, with the clock stopped, the next of several samples
is copied into them: the call finds its input as an application's does that has just written it. What the clock and a
call cost by themselves is measured too: the same loop around nothing, and around the smallest model.

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
from edgeopt.measuring import memory
from edgeopt.samples import Samples, adapt
from edgeopt.worker import Channel

Call = Callable[[], object]
Feeds = Dict[str, Any]

OVERHEAD_CALLS = 500
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
    meter = memory.Meter()
    meter.restart()

    start = time.perf_counter_ns()
    session = backend.load(Path(args["main"]), args["runtime"], args["threads"])
    load_ns = time.perf_counter_ns() - start
    load_peak = meter.peak()
    meter.restart()
    start = time.perf_counter_ns()
    session.run(feeds[0])
    first_inference_ns = time.perf_counter_ns() - start

    bound = session.bind(feeds[0])
    for _ in range(CALLS_BEFORE_PEAK):
        bound()
    inference_peak, own = meter.peak(), meter.own()
    clock_ns, call_ns = overhead(backend, args["runtime"], args["threads"])
    channel.progress(0.5, "warming up")
    warm_up_calls, steady = warm_up(bound, feeds, args["warm_up_ns"])
    channel.send(
        {
            "ready": {
                "load_ns": load_ns,
                "first_inference_ns": first_inference_ns,
                "memory": {"load_peak_bytes": load_peak, "inference_peak_bytes": inference_peak, **own},
                "warm_up_calls": warm_up_calls + CALLS_BEFORE_PEAK,
                "steady": steady,
                "clock_overhead_ns": clock_ns,
                "call_overhead_ns": call_ns,
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
        block, turn = run_block(bound, feeds, turn, order["ns"], order["calls"])
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


def overhead(backend: backends.Backend, runtime: Mapping[str, Any], threads: int) -> Tuple[int, Optional[int]]:
    """What reading the clock costs, and a call of the runtime: medians in ns, both part of every latency.

    The call is of one Relu of four floats. None where the backend has no such model.
    """
    smallest = getattr(backend, "smallest", None)
    session = smallest(runtime, threads) if smallest else None
    nothing = _median_ns(lambda: None)
    if session is None:
        return nothing, None
    import numpy as np

    return nothing, _median_ns(session.bind({session.inputs[0].name: np.ones(4, np.float32)}))


def _median_ns(call: Call) -> int:
    clock = time.perf_counter_ns
    taken: List[int] = []
    for _ in range(OVERHEAD_CALLS):
        start = clock()
        call()
        taken.append(clock() - start)
    return int(median(taken))


def warm_up(bound: backends.Bound, feeds: Sequence[Feeds], limit_ns: int) -> Tuple[int, bool]:
    """Run until the medians of two successive windows differ by less than 5 %, or `limit_ns` has passed.

    A window is at least 5 calls and 20 ms. Returns the number of calls, and whether they became steady.
    """
    start, done, last = time.perf_counter_ns(), 0, 0.0
    while True:
        window: List[int] = []
        opened = time.perf_counter_ns()
        while len(window) < WINDOW_CALLS or time.perf_counter_ns() - opened < WINDOW_NS:
            bound.fill(feeds[done % len(feeds)])
            before = time.perf_counter_ns()
            bound()
            window.append(time.perf_counter_ns() - before)
            done += 1
        now = median(window)
        if last and abs(now / last - 1) < STEADY:
            return done, True
        if time.perf_counter_ns() - start > limit_ns:
            return done, False
        last = now


def run_block(
    bound: backends.Bound, feeds: Sequence[Feeds], turn: int, budget_ns: int, least: int
) -> Tuple[Dict[str, Any], int]:
    """One block: a call that is dropped, then calls until `budget_ns` has passed and `least` are done, at most 4,000.

    Returns the block as `edgeopt.measurement.Block.to_json` gives it, and whose turn is next.
    """
    import resource  # not to be had on Windows, where the rest of this module may still be imported

    usage, whom, clock, count = resource.getrusage, resource.RUSAGE_SELF, time.perf_counter_ns, len(feeds)
    fill = bound.fill
    latencies: List[int] = []
    switched: List[int] = []
    gc.collect()
    gc.disable()
    try:
        bound()
        cpu = time.process_time_ns()
        opened = now = clock()
        while (now - opened < budget_ns or len(latencies) < least) and len(latencies) < MOST_CALLS_OF_A_BLOCK:
            fill(feeds[turn % count])
            turn += 1
            switches = usage(whom).ru_nivcsw
            start = clock()
            bound()
            now = clock()
            if usage(whom).ru_nivcsw != switches:
                switched.append(len(latencies))
            latencies.append(now - start)
        cpu = time.process_time_ns() - cpu
    finally:
        gc.enable()
    return {"latencies_ns": latencies, "switched": switched, "wall_ns": now - opened, "cpu_ns": cpu}, turn
