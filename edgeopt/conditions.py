"""The machine that was measured on, and what went on there meanwhile. What cannot be read is None, never estimated.

`edgeopt.measuring.machine` reads these values; here is what follows from them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgeopt.fields import checked

MOST_STEAL = 0.1  # of a round's processor time, before the round counts as disturbed


@dataclass(frozen=True)
class Machine:
    """A machine as found. None is unreadable. `cores` are those that this process may use.

    `isa` holds the instruction set extensions that matter to inference ("avx512_vnni", "asimddp").
    """

    cpu: Optional[str]
    arch: str
    cores: int
    memory_bytes: Optional[int]
    governor: Optional[str]
    os: str
    python: str
    isa: Tuple[str, ...] = ()

    def to_json(self) -> Dict[str, Any]:
        return {**asdict(self), "isa": list(self.isa)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Machine:
        return checked(Machine(**{**value, "isa": tuple(value.get("isa", ()))}))

    def differences(self, other: Machine) -> List[str]:
        """What makes times of the two incomparable, one line each. Kernel, Python and odd bytes of memory do not."""
        named: List[Tuple[str, object, object]] = [("cpu", self.cpu, other.cpu), ("arch", self.arch, other.arch)]
        named += [("cores", self.cores, other.cores)]
        named += [("governor", self.governor, other.governor), ("isa", self.isa, other.isa)]
        named += [("memory, GiB", _gib(self.memory_bytes), _gib(other.memory_bytes))]
        return [f"{name}: {mine} and {theirs}" for name, mine, theirs in named if mine != theirs]


def _gib(size_bytes: Optional[int]) -> Optional[int]:
    return None if size_bytes is None else round(size_bytes / 2**30)


@dataclass(frozen=True)
class EnergyCounter:
    """Of each processor package the counter in µJ, and the largest value before it begins at nought again (RAPL)."""

    packages: Tuple[Tuple[int, ...], ...]

    def since(self, before: EnergyCounter) -> int:
        """µJ of all packages from `before` on. A counter that went round more than once in between is not noticed."""
        pairs = zip(before.packages, self.packages)
        return sum(now - then if now >= then else now - then + most for (then, most), (now, _) in pairs)


@dataclass(frozen=True)
class MachineState:
    """Counters and sensors of a machine at one moment. None, or an empty mapping, is unreadable.

    `pressure_us` counts the time in which some task waited for a processor (PSI, "some"). Of `total_ticks` of all
    processors `busy_ticks` were used, `own_ticks` of these by the processes asked for, and `steal_ticks` went to other
    guests of the hypervisor. `frequency_hz` and `temperature_c` are the highest of all cores and zones, `throttled`
    counts how often the processor slowed itself down, `swapped_pages` the pages that went to and came from the disk.
    `power_watts` is by rail.
    """

    time_ns: int
    pressure_us: Optional[int] = None
    steal_ticks: Optional[int] = None
    total_ticks: Optional[int] = None
    busy_ticks: Optional[int] = None
    own_ticks: Optional[int] = None
    frequency_hz: Optional[int] = None
    temperature_c: Optional[float] = None
    throttled: Optional[int] = None
    swapped_pages: Optional[int] = None
    available_memory_bytes: Optional[int] = None
    energy: Optional[EnergyCounter] = None
    power_watts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Disturbance:
    """What went on between two states, None where it cannot be read.

    `pressure`, `steal` and `others` are fractions: of the time, and of all processors' time the latter two. `pressure`
    includes waiting caused by the measurement itself where it runs more threads than there are cores; `others` is what
    processes that were not measured used. `frequency_hz` and `temperature_c` are those before and after, `throttled`
    and `swapped_pages` counts, `power_watts` the mean by rail of readings while inferences ran.
    """

    pressure: Optional[float]
    steal: Optional[float]
    temperature_rise_c: Optional[float] = None
    others: Optional[float] = None
    frequency_hz: Optional[Tuple[int, int]] = None
    temperature_c: Optional[Tuple[float, float]] = None
    throttled: Optional[int] = None
    swapped_pages: Optional[int] = None
    power_watts: Optional[Mapping[str, float]] = None

    def to_json(self) -> Dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Disturbance:
        pairs = {name: tuple(value[name]) for name in ("frequency_hz", "temperature_c") if value.get(name)}
        return checked(Disturbance(**{**value, **pairs}))

    @property
    def reasons(self) -> Tuple[str, ...]:
        """What makes times taken meanwhile worthless, whatever they are: "throttled", "swapped", "stolen"."""
        found = {
            "throttled": bool(self.throttled),
            "swapped": bool(self.swapped_pages),
            "stolen": self.steal is not None and self.steal > MOST_STEAL,
        }
        return tuple(name for name, happened in found.items() if happened)


REASONS: Mapping[str, str] = {
    "throttled": "the processor slowed itself down (heat or power)",
    "swapped": "memory was swapped to the disk or back",
    "stolen": f"the hypervisor took more than {MOST_STEAL:.0%} of the processor time for other guests",
}


def disturbance(before: MachineState, after: MachineState) -> Disturbance:
    """What went on between two states."""
    ticks = _between(before.total_ticks, after.total_ticks)
    busy, own = _between(before.busy_ticks, after.busy_ticks), _between(before.own_ticks, after.own_ticks)
    frequency = temperature = rise = None
    if before.frequency_hz is not None and after.frequency_hz is not None:
        frequency = before.frequency_hz, after.frequency_hz
    if before.temperature_c is not None and after.temperature_c is not None:
        temperature = before.temperature_c, after.temperature_c
        rise = after.temperature_c - before.temperature_c
    return Disturbance(
        pressure=_share(
            _between(before.pressure_us, after.pressure_us), round((after.time_ns - before.time_ns) / 1000)
        ),
        steal=_share(_between(before.steal_ticks, after.steal_ticks), ticks),
        temperature_rise_c=rise,
        others=_share(None if busy is None or own is None else busy - own, ticks),
        frequency_hz=frequency,
        temperature_c=temperature,
        throttled=_between(before.throttled, after.throttled),
        swapped_pages=_between(before.swapped_pages, after.swapped_pages),
    )


def _between(before: Optional[int], after: Optional[int]) -> Optional[int]:
    return None if before is None or after is None else after - before


def _share(part: Optional[int], whole: Optional[int]) -> Optional[float]:
    return None if part is None or not whole or whole <= 0 else min(1.0, max(0.0, part / whole))
