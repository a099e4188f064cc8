"""This machine as Linux tells it: what it is, and what goes on. A value that cannot be read is None, never estimated.

Elsewhere than on Linux only the architecture, the cores and the versions are known. The instruction set extensions are
those the kernel lists; a runtime may use fewer.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Dict, Iterable, Optional, Tuple

from edgeopt.isa import instruction_sets
from edgeopt.measurement import Machine, MachineState

_CPU = "/sys/devices/system/cpu"


def fingerprint() -> Machine:
    """What this machine is."""
    text = _read("/proc/cpuinfo") or ""
    return Machine(
        cpu=cpu_model(text) or _device_tree_model(),
        arch=platform.machine(),
        cores=usable_cores(),
        memory_bytes=_meminfo("MemTotal"),
        governor=_read(f"{_CPU}/cpu0/cpufreq/scaling_governor"),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        isa=instruction_sets(),
    )


def state() -> MachineState:
    """What goes on: read before and after measuring, `edgeopt.measurement.disturbance` tells what lies between."""
    steal, total = cpu_ticks(_read("/proc/stat") or "")
    frequencies = _numbers(f"{_CPU}/cpu{core}/cpufreq/scaling_cur_freq" for core in range(os.cpu_count() or 1))
    temperatures = _numbers(str(zone / "temp") for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")))
    return MachineState(
        time_ns=time.monotonic_ns(),
        pressure_us=pressure_us(_read("/proc/pressure/cpu") or ""),
        steal_ticks=steal,
        total_ticks=total,
        frequency_hz=max(frequencies) * 1000 if frequencies else None,
        temperature_c=max(temperatures) / 1000 if temperatures else None,
        available_memory_bytes=_meminfo("MemAvailable"),
    )


def usable_cores() -> int:
    """Cores that this process may run on; of a container's CPU quota it knows nothing."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model(cpuinfo: str) -> Optional[str]:
    """The processor's name in the text of /proc/cpuinfo: x86 has "model name", Arm codes of maker and part."""
    fields = _fields(cpuinfo)
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:
        core = f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
        return f"{fields['Model']}, {core}" if "Model" in fields else core
    return fields.get("Model") or fields.get("Hardware")


def pressure_us(text: str) -> Optional[int]:
    """The total of the line "some" of /proc/pressure/cpu, in µs."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["some"] and words[-1].startswith("total="):
            return int(words[-1][len("total=") :])
    return None


def cpu_ticks(text: str) -> Tuple[Optional[int], Optional[int]]:
    """Stolen and all ticks of all cores, from the first line of /proc/stat. Guest time is in user time already."""
    words = text.split("\n", 1)[0].split()
    if words[:1] != ["cpu"] or len(words) < 9:
        return None, None
    ticks = [int(word) for word in words[1:9]]
    return ticks[7], sum(ticks)


def _fields(cpuinfo: str) -> Dict[str, str]:
    """The first value of each key."""
    fields: Dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: str) -> Optional[str]:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _numbers(paths: Iterable[str]) -> Tuple[int, ...]:
    texts = [_read(path) for path in paths]
    return tuple(int(text) for text in texts if text is not None and text.lstrip("-").isdigit())


def _meminfo(key: str) -> Optional[int]:
    value = _fields(_read("/proc/meminfo") or "").get(key, "").split()
    return int(value[0]) * 1024 if value and value[0].isdigit() else None


def _device_tree_model() -> Optional[str]:
    return _read("/proc/device-tree/model")
