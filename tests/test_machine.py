"""Counters and sensors, read from folders like /proc and /sys: their layout is the kernel's, the numbers are ours."""

from __future__ import annotations

import pytest

from edgeopt.conditions import disturbance
from edgeopt.measuring import machine


@pytest.fixture
def put(tmp_path):
    """Write a file of the tree, with its folders."""

    def write(path: str, text: object) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{text}\n")

    return write


def test_what_is_not_there_is_unavailable(tmp_path):
    found = machine.state(root=tmp_path)
    assert (found.pressure_us, found.steal_ticks, found.own_ticks, found.frequency_hz) == (None, None, None, None)
    assert (found.temperature_c, found.throttled, found.swapped_pages, found.energy) == (None, None, None, None)
    assert found.power_watts == {}
    told = disturbance(found, found).to_json()
    assert {key for key, value in told.items() if value is not None} == set()


def test_frequency_temperature_and_throttling_are_those_of_all_cores(tmp_path, put):
    for core, khz, throttled in ((0, 1_800_000, 3), (1, 2_400_000, 4)):
        put(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
        put(f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", throttled)
    put("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count", 10)
    put("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_total_time_ms", 999)
    put("sys/class/thermal/thermal_zone0/temp", 48_000)
    put("sys/class/thermal/thermal_zone1/temp", 61_500)
    found = machine.state(root=tmp_path)
    assert (found.frequency_hz, found.temperature_c, found.throttled) == (2_400_000_000, 61.5, 17)


def test_energy_is_of_the_packages_alone(tmp_path, put):
    for domain, name, joules in (
        ("intel-rapl:0", "package-0", 5),
        ("intel-rapl:0:0", "core", 3),
        ("intel-rapl:1", "package-1", 7),
        ("intel-rapl:2", "psys", 40),
    ):
        put(f"sys/class/powercap/{domain}/name", name)
        put(f"sys/class/powercap/{domain}/energy_uj", joules * 10**6)
        put(f"sys/class/powercap/{domain}/max_energy_range_uj", 262_143_328_850)
    found = machine.energy(tmp_path)
    assert [now for now, _ in found.packages] == [5_000_000, 7_000_000]


def test_energy_that_only_root_may_read_is_unavailable(tmp_path, put):
    put("sys/class/powercap/intel-rapl:0/name", "package-0")
    put("sys/class/powercap/intel-rapl:0/max_energy_range_uj", 262_143_328_850)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()  # reading it fails, for root too
    assert machine.energy(tmp_path) is None


def test_power_of_an_ina3221_of_a_jetson_is_voltage_by_current(tmp_path, put):
    for rail, label, millivolts, milliamperes in ((1, "VDD_IN", 5_040, 1_000), (2, "VDD_CPU_GPU_CV", 5_000, 300)):
        put(f"sys/class/hwmon/hwmon3/in{rail}_label", label)
        put(f"sys/class/hwmon/hwmon3/in{rail}_input", millivolts)
        put(f"sys/class/hwmon/hwmon3/curr{rail}_input", milliamperes)
    put("sys/class/hwmon/hwmon3/name", "ina3221")
    assert machine.power_watts(tmp_path) == {"VDD_IN": 5.04, "VDD_CPU_GPU_CV": 1.5}


def test_power_of_a_sensor_is_in_microwatts(tmp_path, put):
    put("sys/class/hwmon/hwmon0/name", "ina226")
    put("sys/class/hwmon/hwmon0/power1_input", 3_250_000)
    assert machine.power_watts(tmp_path) == {"ina226 power1": 3.25}


def test_ticks_of_a_process_that_is_gone_leave_the_load_of_others_unknown(tmp_path, put):
    put("proc/stat", "cpu  10 20 30 40 50 60 70 80 5 5")
    put(f"proc/{machine.os.getpid()}/stat", "1 (python) S 0 0 0 0 0 0 0 0 0 0 7 5 0 0")
    put("proc/7/stat", "7 (worker) S 0 0 0 0 0 0 0 0 0 0 30 12 0 0")
    assert machine.state((7,), tmp_path).own_ticks == 54
    assert machine.state((7, 8), tmp_path).own_ticks is None


def test_swapping_and_waiting_are_counted(tmp_path, put):
    put("proc/vmstat", "pgpgin 9\npswpin 4\npswpout 5")
    put("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234")
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 60 kB")
    found = machine.state(root=tmp_path)
    assert (found.swapped_pages, found.pressure_us, found.available_memory_bytes) == (9, 1234, 61_440)
