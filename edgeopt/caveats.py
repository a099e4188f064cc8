"""What has to be said of a measurement besides its numbers. It follows from the measurement alone."""

from __future__ import annotations

from typing import List

from edgeopt.conditions import Disturbance
from edgeopt.measurement import Measurement, told_disturbed

BUSY = 0.25  # of the time, some program waits for a processor
MUCH_STEAL = 0.05  # of the processors' time


def caveats(measurement: Measurement) -> List[str]:
    """What makes the numbers worth less, and what to do."""
    found = []
    latency, between = measurement.latency, measurement.conditions or Disturbance(None, None)
    if not measurement.steady:
        found.append("latencies had not settled when the warm-up ended")
    if latency.basis == "all":
        found.append(
            f"only {latency.clean_samples} of {latency.samples} calls ran without being switched out: "
            "percentiles are of all calls; stop other programs, or use fewer threads"
        )
    elif latency.clean_fraction < 0.5:
        found.append(
            f"{latency.clean_fraction:.0%} of the calls ran without being switched out: the machine is busy, "
            "and the tail is likely longer than the percentiles of the clean calls say"
        )
    told = told_disturbed(measurement.rounds)
    if told:
        found.append(f"{told}: these rounds are kept, and count for nothing")
    if between.pressure is not None and between.pressure > BUSY:
        found.append(f"for {between.pressure:.0%} of the time some program waited for a processor")
    if between.steal is not None and between.steal > MUCH_STEAL:
        found.append(f"the hypervisor took {between.steal:.0%} of the processor time for others")
    governor = measurement.machine.governor
    if governor is not None and governor != "performance":
        found.append(f"the frequency governor is {governor}: with 'performance' latencies repeat better")
    if measurement.threads > measurement.machine.cores:
        found.append(f"{measurement.threads} threads on {measurement.machine.cores} usable cores")
    return found
