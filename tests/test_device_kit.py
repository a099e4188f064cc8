"""The device half as one file, in environments that have numpy and one runtime and nothing else."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import linear
import processes
import pytest
from test_layers import LAYERS, MODULES, layer_of

from edgeopt import backends
from edgeopt.__main__ import main

RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tflite": "ai-edge-litert"}
FOREIGN = ("typer", "rich", "yaml", "pydantic", "psutil", "torch", "onnx")


def old_python() -> str:
    """Python 3.9 where this machine has it, else the Python of the tests."""
    found = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9.*/bin/python"))]
    for python in filter(None, found):
        if subprocess.run([python, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return str(python)
    return sys.executable


def environment(runtime: str) -> Path:
    """The interpreter of an environment with numpy and this runtime, made once and kept in the temporary folder."""
    python = old_python()
    version = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    root = Path(tempfile.gettempdir()) / f"edgeopt-test-environments-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    folder = root / f"{runtime}-{version}"
    with open(root / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([python, "-m", "venv", folder], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-compile", "--prefer-binary"]
            subprocess.run([*pip, "numpy", RUNTIMES[runtime]], check=True)
            (folder / "complete").touch()
    return folder / "bin" / "python"


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request):
    return request.param


@pytest.fixture(scope="module")
def python(runtime):
    return environment(runtime)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """A folder as on a device: the kit, a bundle for each runtime, samples."""
    folder = tmp_path_factory.mktemp("device")
    assert main(["device-kit", "-o", str(folder / "kit.pyz"), "--json"]) == 0
    for backend in RUNTIMES:
        linear.bundle(folder / backend, backend)
    linear.save_data(folder / "data.npz")
    return folder


def kit(python, device, *args):
    done = subprocess.run(
        [python, "-I", "kit.pyz", *args],
        cwd=device,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    as_json = json.loads(done.stdout) if "--json" in args else None
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr, json=as_json)


def test_the_same_bytes_each_time(device, tmp_path, capsys):
    os.utime(Path(MODULES["edgeopt.errors"]))
    assert main(["device-kit", "-o", str(tmp_path / "again.pyz")]) == 0
    assert (tmp_path / "again.pyz").read_bytes() == (device / "kit.pyz").read_bytes()
    assert "again.pyz" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["again.pyz"]


def test_it_holds_the_device_half_and_nothing_else(device):
    wanted = {path for name, path in MODULES.items() if layer_of(name) in ("values", "device")}
    root = MODULES["edgeopt"].parents[1]
    with zipfile.ZipFile(device / "kit.pyz") as archive:
        assert set(archive.namelist()) == {"__main__.py", *(str(path.relative_to(root)) for path in wanted)}
        assert archive.namelist() == sorted(archive.namelist())
    assert (device / "kit.pyz").stat().st_size < 160_000
    assert set(LAYERS["values"]) <= {name for name in MODULES if layer_of(name) == "values"}


def test_where_it_cannot_be_written_is_told(tmp_path, capsys):
    assert main(["device-kit", "-o", str(tmp_path / "no" / "kit.pyz")]) == 2
    assert "no/kit.pyz: cannot be written" in capsys.readouterr().err
    assert main(["device-kit", "-o", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_the_environment_has_numpy_and_one_runtime(python, runtime):
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    others = [RUNTIMES[name].replace("-", "_") for name in RUNTIMES if name != runtime]
    done = subprocess.run([python, "-I", "-c", code, *FOREIGN, "edgeopt", *others], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_bundle_is_proven_measured_and_right_on_the_device(python, runtime, device):
    told = kit(python, device, "bench", runtime, "--data", "data.npz", "--quick", "--rounds", "6", "--json")
    assert told.code == 0, told.err
    (row,) = told.json["measurements"]
    assert row["proof"]["samples"] == 4
    assert row["quality"]["value"] == 1.0
    assert row["latency_ns"]["p50"]["value"] > 0
    assert row["backend"] == runtime
    assert row["runtime_version"]
    assert told.json["machine"]["python"] == told.json["measurements"][0]["machine"]["python"]


def test_doctor_tells_the_one_runtime_and_what_installs_the_others(python, runtime, device):
    told = kit(python, device, "doctor", "--json")
    assert [name for name, found in told.json["backends"].items() if found["usable"]] == [runtime]
    for name, found in told.json["backends"].items():
        module = backends.find(name)
        install = getattr(module, "INSTALL", f"pip install {module.DISTRIBUTION}")
        assert name == runtime or found["reason"] or found["install"] == install


def test_another_runtimes_bundle_is_told_with_the_line_that_installs_it(python, runtime, device):
    other = next(name for name in RUNTIMES if name != runtime)
    told = kit(python, device, "bench", other, "--json")
    assert told.code == told.json["error"]["exit_code"] == 5
    assert f"pip install {RUNTIMES[other]}" in told.err
    assert len(told.err.splitlines()) <= 5


def bare(device, *args):
    """The kit without any package, not even numpy."""
    done = subprocess.run(
        [old_python(), "-I", "-S", "kit.pyz", *args], cwd=device, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_the_table_is_that_of_the_workstation(device, capsys, monkeypatch):
    python = environment("onnxruntime")
    told = kit(python, device, "bench", "onnxruntime", "--quick", "--rounds", "6")
    monkeypatch.chdir(device)
    assert main(["bench", "onnxruntime", "--quick", "--rounds", "6"]) == 0
    here = capsys.readouterr().out
    titles = [next(line.split() for line in text.splitlines() if " p50 " in line) for text in (told.out, here)]
    assert set(titles[0]) ^ set(titles[1]) <= {"p99"}, "p99 takes 459 samples"
    assert "proven: onnxruntime: 4 golden samples" in told.out


def test_help_and_mistakes_need_no_package(device):
    code, out, err = bare(device, "bench", "-h")
    assert (code, err) == (0, "")
    assert "kit.pyz bench best/" in out
    code, out, err = bare(device, "bench", "onnxruntime", "--rounds", "0", "--json")
    assert code == json.loads(out)["error"]["exit_code"] == 2
    assert "kit.pyz bench -h" in err
    code, out, err = bare(device, "bench", "onnxruntime")
    assert (code, out) == (5, "")
    assert "pip install numpy" in err


def test_what_nohup_ignores_stays_ignored(device):
    code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); sys.path.insert(0, 'kit.pyz'); "
    code += "from edgeopt.kit.command import main; main(['bench']); print(signal.getsignal(signal.SIGHUP).name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=device, capture_output=True, text=True, check=False)
    assert done.stdout == "SIG_IGN\n"


def test_an_older_python_is_told_so(device):
    """The first lines of the kit, as Python 3.8 reads them."""
    code = "import sys, zipfile; sys.version_info = (3, 8, 18); "
    code += "exec(compile(zipfile.ZipFile('kit.pyz').read('__main__.py'), 'main', 'exec'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=device, capture_output=True, text=True, check=False)
    assert done.stderr == "Error: Python 3.9 or newer is needed, this is 3.8\n"


@pytest.mark.parametrize("sent", processes.STOPS)
def test_nothing_is_left_running_when_it_is_stopped(device, tmp_path, sent):
    command = [environment("onnxruntime"), "kit.pyz", "bench", "onnxruntime", "--rounds", "10000"]
    with processes.started(command, cwd=device, env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}) as process:
        left = processes.wait_for_children(process, 2)
        assert len(left) == 2, "the model and its twin"
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "nothing is left running" in err
    assert processes.gone(left)
    assert not list(tmp_path.glob("edgeopt*"))
