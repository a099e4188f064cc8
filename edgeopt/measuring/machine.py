"""This machine as Linux tells it: what it is, and what goes on. A value that cannot be read is None, never estimated.

Elsewhere than on Linux only the architecture, the cores and the versions are known. The instruction set extensions are
those the kernel lists; a runtime may use fewer.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Dict, Iterable, NamedTuple, Optional, Sequence, Tuple

from edgeopt.conditions import EnergyCounter, Machine, MachineState
from edgeopt.isa import instruction_sets

ROOT = Path("/")


def fingerprint() -> Machine:
    """What this machine is."""
    text = _read(ROOT / "proc/cpuinfo") or ""
    return Machine(
        cpu=cpu_model(text) or _read(ROOT / "proc/device-tree/model"),
        arch=platform.machine(),
        cores=usable_cores(),
        memory_bytes=_meminfo(ROOT, "MemTotal"),
        governor=_read(ROOT / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        isa=instruction_sets(),
    )


def state(own: Sequence[int] = (), root: Path = ROOT) -> MachineState:
    """What goes on: read before and after measuring, `edgeopt.conditions.disturbance` tells what lies between.

    `own` are the processes whose use of the processors is not that of others; this one is always among them. `root` is
    the folder with proc and sys.
    """
    cpus = root / "sys/devices/system/cpu"
    ticks = cpu_ticks(_read(root / "proc/stat") or "")
    frequencies = _numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    temperatures = _numbers((root / "sys/class/thermal").glob("thermal_zone*/temp"))
    throttled = _numbers(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    return MachineState(
        time_ns=time.monotonic_ns(),
        pressure_us=pressure_us(_read(root / "proc/pressure/cpu") or ""),
        steal_ticks=ticks.steal if ticks else None,
        total_ticks=ticks.total if ticks else None,
        busy_ticks=ticks.busy if ticks else None,
        own_ticks=_own_ticks(root, (os.getpid(), *own)),
        frequency_hz=max(frequencies) * 1000 if frequencies else None,
        temperature_c=max(temperatures) / 1000 if temperatures else None,
        throttled=sum(throttled) if throttled else None,
        swapped_pages=swapped_pages(_read(root / "proc/vmstat") or ""),
        available_memory_bytes=_meminfo(root, "MemAvailable"),
        energy=energy(root),
        power_watts=power_watts(root),
    )


def energy(root: Path = ROOT) -> Optional[EnergyCounter]:
    """What the processor packages have taken so far (RAPL, powercap in the kernel's documentation).

    None where there is no such counter or it may not be read, which without root is the rule.
    """
    packages = {}
    for domain in sorted((root / "sys/class/powercap").glob("*rapl*:*")):
        if domain.name.count(":") != 1 or not (_read(domain / "name") or "").startswith("package"):
            continue  # its parts, and the whole machine, which has it in it
        numbers = _numbers([domain / "energy_uj", domain / "max_energy_range_uj"])
        if len(numbers) != 2:
            return None
        packages[domain.name] = numbers
    return EnergyCounter(tuple(packages.values())) if packages else None


def power_watts(root: Path = ROOT) -> Dict[str, float]:
    """What power sensors show now, by name: hwmon's power (µW), or INA chips of boards as voltage (mV) x current (mA).

    Empty where there are none. On a Jetson the rail "VDD_IN" is the whole module.
    """
    found: Dict[str, float] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _read(chip / "name") or chip.name
        for sensor in sorted([*chip.glob("power[0-9]*_input"), *chip.glob("power[0-9]*_average")]):
            stem = sensor.name.rpartition("_")[0]
            found.update((_rail(chip, stem, name), microwatts / 1e6) for microwatts in _numbers([sensor]))
        if name.startswith("ina"):
            for sensor in sorted(chip.glob("curr[0-9]*_input")):
                number = sensor.name[len("curr") : -len("_input")]
                pair = _numbers([chip / f"in{number}_input", sensor])
                if len(pair) == 2:
                    found[_rail(chip, f"in{number}", name)] = pair[0] * pair[1] / 1e6
    return found


def _rail(chip: Path, sensor: str, name: str) -> str:
    return _read(chip / f"{sensor}_label") or f"{name} {sensor}"


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


class Ticks(NamedTuple):
    """Of all processors since the start: those stolen by the hypervisor, those in use, and all."""

    steal: int
    busy: int
    total: int


def cpu_ticks(text: str) -> Optional[Ticks]:
    """From the first line of /proc/stat. Guest time is in user time already; waiting for a disk is not busy."""
    words = text.split("\n", 1)[0].split()
    if words[:1] != ["cpu"] or len(words) < 9:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in words[1:9])
    busy = user + nice + system + irq + softirq
    return Ticks(steal, busy, busy + idle + iowait + steal)


def process_ticks(text: str) -> Optional[int]:
    """User and system time in /proc/<pid>/stat, None of a process that is gone. Its name, in brackets, may hold any."""
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) if len(fields) > 12 else None


def _own_ticks(root: Path, pids: Sequence[int]) -> Optional[int]:
    ticks = [process_ticks(_read(root / f"proc/{pid}/stat") or "") for pid in pids]
    return None if None in ticks else sum(filter(None, ticks))


def swapped_pages(text: str) -> Optional[int]:
    """Pages read from and written to swap, in /proc/vmstat."""
    counts = [int(line.split()[1]) for line in text.splitlines() if line.startswith(("pswpin ", "pswpout "))]
    return sum(counts) if counts else None


def _fields(cpuinfo: str) -> Dict[str, str]:
    """The first value of each key."""
    fields: Dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields


def _read(path: Path) -> Optional[str]:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def _numbers(paths: Iterable[Path]) -> Tuple[int, ...]:
    texts = [_read(path) for path in paths]
    return tuple(int(text) for text in texts if text is not None and text.lstrip("-").isdigit())


def _meminfo(root: Path, key: str) -> Optional[int]:
    value = _fields(_read(root / "proc/meminfo") or "").get(key, "").split()
    return int(value[0]) * 1024 if value and value[0].isdigit() else None
