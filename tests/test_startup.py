"""What a start costs: the modules that a command loads, and the Python that the device half asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import LAYERS, MODULES, VENDORS, layer_of

ROOT = Path(__file__).parents[1]
HOST_LIBRARIES = ("pydantic", "yaml", "rich", "numpy", "psutil")

RUN = """
import json, sys
from edgeopt.__main__ import main

code = main(sys.argv[1:])
sys.stdout.flush()
print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)
"""


def loaded(*args: str, cache: Path) -> tuple[set[str], set[str], str]:
    """The top-level packages and all modules that a command has loaded when it ends, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "EDGEOPT_CACHE": str(cache)},
    )
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stderr
    return {name.partition(".")[0] for name in modules}, set(modules), done.stdout


def test_help_loads_the_command_line_and_nothing_else(tmp_path: Path) -> None:
    packages, modules, text = loaded("--help", cache=tmp_path)
    assert "convert" in text
    assert not packages & {*VENDORS, *HOST_LIBRARIES}
    own = {name for name in modules if name.partition(".")[0] == "edgeopt"}
    assert {layer_of(name) for name in own} <= {"values", "cli"}


def test_a_dry_run_loads_no_vendor_library(tmp_path: Path) -> None:
    packages, _, text = loaded("convert", "recipes/fashion-mnist.yaml", "--dry-run", "--json", cache=tmp_path)
    assert len(json.loads(text)["candidates"]) >= 4
    assert not packages & set(VENDORS)


def test_a_mistake_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("modle: a.onnx\n")
    code = "import sys; from edgeopt.__main__ import main; code = main(['convert', sys.argv[1]])\n"
    code += "print(code, *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.yaml")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    exit_code, *packages = done.stdout.split()
    assert exit_code == "2"
    assert "did you mean 'model'" in done.stderr
    assert not set(packages) & set(VENDORS)


def test_values_are_imported_with_the_standard_library_alone() -> None:
    names = [name for name in MODULES if layer_of(name) == "values"]
    assert len(names) == len(LAYERS["values"])
    code = f"import {', '.join(names)}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert not set(done.stdout.split()) - set(sys.stdlib_module_names) - {"edgeopt", "__main__"}


def test_the_device_half_is_python_3_9() -> None:
    pytest.importorskip("vermin", reason="the extra `test` brings vermin")
    files = [str(path) for name, path in MODULES.items() if layer_of(name) in ("values", "device")]
    done = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.9-", "--no-tips", "--violations", *files],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
