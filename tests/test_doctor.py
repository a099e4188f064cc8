"""What `edgeopt doctor` finds: with the real runtimes, and with published backends that are broken in every way."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from edgeopt import backends, doctor
from edgeopt.report.doctor import print_report

NEEDS_HARDWARE = ("edgetpu", "tensorrt")  # that not every machine has
BROKEN = {
    "crashing": "import os, signal, sys\nprint('illegal instruction ahead', file=sys.stderr, flush=True)\n"
    "os.kill(os.getpid(), signal.SIGSEGV)\n",
    "hanging": "import time\ntime.sleep(600)\n",
    "unlinked": "raise ImportError('libvendor.so.1: cannot open shared object file')\n",
}


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    return doctor.examine()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with a backend for each of BROKEN, one whose runtime is not installed and one without a module."""
    names = [*BROKEN, "absent"]
    for name in names:
        backend = f'FORMAT = "onnx"\nDISTRIBUTION = "vendor-{name}"\nIMPORTS = ("vendor_{name}",)\n'
        (tmp_path / f"backend_{name}.py").write_text(backend)
    for name, text in BROKEN.items():
        (tmp_path / f"vendor_{name}.py").write_text(text)
    info = tmp_path / "brokenbackends-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brokenbackends\nVersion: 1.0\n")
    entries = [f"{name} = backend_{name}" for name in names] + ["orphan = no_such_module"]
    (info / "entry_points.txt").write_text("\n".join(["[edgeopt.backends]", *entries]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", [name for name in backends.names() if name not in NEEDS_HARDWARE])
def test_an_installed_runtime_is_usable_and_its_version_is_told(report: doctor.Report, name: str) -> None:
    if name == "ncnn":
        pytest.importorskip("ncnn", reason="the extra `ncnn` brings it")
    found = report.backends[name]
    assert (found.usable, found.reason, found.missing, found.install) == (True, None, None, None)
    assert found.version == importlib.metadata.version(backends.find(name).DISTRIBUTION)


@pytest.mark.parametrize("name", NEEDS_HARDWARE)
def test_a_runtime_whose_hardware_is_missing_is_not_usable_and_says_so(report: doctor.Report, name: str) -> None:
    found = report.backends[name]
    assert found.usable == bool(found.devices)
    assert found.usable or found.reason or found.missing


def test_openvino_tells_what_its_devices_are_capable_of(report: doctor.Report) -> None:
    assert {"FP32", "INT8"} <= set(report.backends["openvino"].devices["CPU"])


def test_onnxruntime_tells_its_execution_providers(report: doctor.Report) -> None:
    assert "CPUExecutionProvider" in report.backends["onnxruntime"].devices


def test_every_step_tells_the_versions_of_its_tools(report: doctor.Report) -> None:
    assert {"quantize int8", *(f"compile {name}" for name in backends.names())} <= set(report.steps)
    quantize = report.steps["quantize int8"]
    assert quantize.usable
    assert quantize.tools["nncf"] == importlib.metadata.version("nncf")


def test_a_step_that_lacks_a_tool_is_not_usable_and_says_what_to_install() -> None:
    step = doctor.Step({"numpy": "2.0", "no-such-tool": None})
    assert not step.usable
    assert step.install == "pip install no-such-tool"


def test_a_runtime_that_is_not_installed_is_named_with_the_line_that_installs_it(published: Path) -> None:
    found = doctor.backend("absent")
    assert (found.usable, found.missing, found.install) == (False, "vendor_absent", "pip install vendor-absent")


def test_a_runtime_whose_import_crashes_is_not_usable(published: Path) -> None:
    found = doctor.backend("crashing")
    assert not found.usable
    assert found.reason is not None
    assert "SIGSEGV" in found.reason
    assert "illegal instruction ahead" in found.reason


def test_a_runtime_whose_import_hangs_is_stopped(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 1.0)
    found = doctor.backend("hanging")
    assert not found.usable
    assert "limit of 1 s" in str(found.reason)


def test_a_runtime_that_lost_a_shared_library_says_which(published: Path) -> None:
    found = doctor.backend("unlinked")
    assert not found.usable
    assert "libvendor.so.1" in str(found.reason)


def test_a_published_backend_without_its_module_costs_itself_alone(published: Path) -> None:
    found = doctor.backend("orphan")
    assert not found.usable
    assert "no_such_module" in str(found.reason)


def test_published_backends_are_examined_too(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "IMPORT_SECONDS", 1.0)
    found = doctor.examine().backends
    assert set(found) == {*backends.names(), *BROKEN, "absent", "orphan"}
    assert not any(found[name].usable for name in (*BROKEN, "absent", "orphan"))


def test_the_machine_is_this_one(report: doctor.Report) -> None:
    assert report.machine.cores == len(os.sched_getaffinity(0))
    assert report.available_memory_bytes is not None
    assert report.machine.memory_bytes is not None
    assert 0 < report.available_memory_bytes < report.machine.memory_bytes


def test_free_space_is_told_for_a_cache_that_is_not_there_yet(tmp_path: Path) -> None:
    free = doctor.free_bytes(tmp_path / "not" / "there")
    assert free is not None
    assert free > 0
    assert not (tmp_path / "not").exists()


def test_a_program_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    programs = doctor.programs()
    assert programs["trtexec"] == str(program)
    assert programs["edgetpu_compiler"] is None


def test_the_report_is_json_with_the_promised_keys(report: doctor.Report) -> None:
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["schema"] == 1
    assert {"usable", "version", "missing", "install"} <= set(value["backends"]["openvino"])
    assert {"usable", "tools", "missing", "install"} <= set(value["steps"]["quantize int8"])
    assert {"cpu", "isa", "cores", "memory_bytes", "cache_free_bytes", "python"} <= set(value["machine"])
    assert set(value["programs"]) == {"edgetpu_compiler", "trtexec", "adb", "ssh"}


def test_the_printed_report_shows_what_broke_and_obeys_no_control_characters(report: doctor.Report) -> None:
    broken = {
        "absent": doctor.Backend(False, missing="vendor", install="pip install vendor"),
        "crashing": doctor.Backend(False, reason="killed by SIGSEGV (\x1b[2Jlast words)"),
    }
    console = Console(file=io.StringIO(), width=200)
    print_report(dataclasses.replace(report, backends={**report.backends, **broken}), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pip install vendor" in text
    assert "killed by SIGSEGV" in text
    assert "\x1b" not in text
    assert report.machine.python in text


def test_the_calling_process_imports_no_vendor_library() -> None:
    code = (
        "import sys; from edgeopt import doctor; doctor.examine()\n"
        "vendors = {'torch', 'onnx', 'onnxruntime', 'openvino', 'nncf', 'ai_edge_litert', 'litert_torch'}\n"
        "print(*sorted(vendors & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
