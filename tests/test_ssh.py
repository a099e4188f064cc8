"""A device behind a real sshd on loopback, with Python, numpy and one runtime: measuring there, errors, lost lines."""

from __future__ import annotations

import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import linear
import processes
import pytest
import sshd
import yaml
from test_device_kit import environment

from edgeopt import catalog, devices
from edgeopt.__main__ import main
from edgeopt.devices import openssh
from edgeopt.devices.ssh import read_answer
from edgeopt.errors import CorruptArtifact, EdgeoptError
from edgeopt.kit import remote
from edgeopt.kit.transfer import read_files, write_files


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    with sshd.serving(tmp_path_factory.mktemp("sshd")) as found:
        yield found


@pytest.fixture
def recipe(device, tmp_path, monkeypatch):
    """Writes a recipe of the linear model, and returns its path; what is built is kept for all tests."""
    monkeypatch.setenv("EDGEOPT_CACHE", str(device.folder / "store"))
    monkeypatch.chdir(tmp_path)  # where runs/ is made
    linear.save_onnx(tmp_path / "model.onnx")
    linear.save_data(tmp_path / "data.npz")

    def write(rounds=6, compile=("onnxruntime",), **target):
        path = tmp_path / "recipe.yaml"
        told = {
            "model": "model.onnx",
            "data": {"validation": "data.npz"},
            "preprocess": {"mean": 128, "std": 64},
            "steps": [{"compile": list(compile)}],
            "measure": {"rounds": rounds, "block": "10 ms"},
            "target": {**device.target, **target},
        }
        path.write_text(yaml.safe_dump(told))
        return path

    return write


def convert(path, capsys, *more):
    code = main(["convert", str(path), "--json", *more])
    told = capsys.readouterr()
    return SimpleNamespace(code=code, json=json.loads(told.out), err=told.err)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def start(path):
    command = [sys.executable, "-m", "edgeopt", "convert", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, preexec_fn=processes.as_usual, **pipes)


@sshd.needed
def test_candidates_are_measured_there_and_sent_once(device, recipe, capsys, tmp_path):
    found = convert(recipe(), capsys)
    assert found.code == 0, found.err
    (row,) = found.json["candidates"]
    assert row["quality"]["value"] == 1.0
    assert row["latency_ns"]["p50"]["value"] > 0
    assert [point["batch"] for point in row["batch_curve"]["points"]][:3] == [1, 2, 4]
    assert not [*(device.cache / "work").iterdir(), *(device.cache / "results").iterdir()]
    lines = (Path(found.json["run"]) / "measurements.jsonl").read_text().splitlines()
    python = subprocess.run([device.target["python"], "-V"], capture_output=True, text=True).stdout.split()[1]
    assert [json.loads(line)["machine"]["python"] for line in lines] == [python], "by the device's own interpreter"

    sent = {path: path.stat().st_ino for path in (device.cache / "files").iterdir()}
    assert len(sent) >= 4, "the model, the samples, their labels and what tells of them"
    for path in sent:
        (tmp_path / path.name).hardlink_to(path)  # so that no other file gets its number
    damaged = next(path for path in sent if path.stat().st_size == linear.RAW.nbytes + 128)
    damaged.write_bytes(b"damaged")
    again = convert(recipe(rounds=7), capsys)
    assert again.code == 0, again.err
    now = {path: path.stat().st_ino for path in (device.cache / "files").iterdir()}
    assert {path for path in now if now[path] != sent[path]} == {damaged}
    assert not sshd.on_device(device)


@sshd.needed
def test_a_lost_connection_leaves_nothing_and_is_taken_up_again(device, recipe, capsys):
    path = recipe(rounds=2000, threads=2)
    process = start(path)
    assert until(lambda: len(sshd.on_device(device)) == 3 or process.poll() is not None), "its candidate, a twin"
    assert process.poll() is None, process.communicate()
    for pid in map(int, Path(f"/proc/{device.pid}/task/{device.pid}/children").read_text().split()):
        os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "connection" in err
    assert "was lost" in err
    assert len(err.strip().splitlines()) <= 5
    assert until(lambda: not sshd.on_device(device), 20)
    assert until(lambda: not list((device.cache / "work").iterdir()), 20)
    again = convert(recipe(threads=2), capsys)
    assert again.code == 0, again.err
    reused = again.json["reused"]
    assert (reused["steps"], reused["measurements"]) == (reused["of"], False), "quality was finished before the cut"


@sshd.needed
def test_an_interrupt_leaves_nothing(device, recipe):
    process = start(recipe(rounds=2000))
    assert until(lambda: len(sshd.on_device(device)) == 3 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert until(lambda: not sshd.on_device(device), 20)
    assert until(lambda: not list((device.cache / "work").iterdir()), 20)


@sshd.needed
def test_bench_measures_bundles_there(device, tmp_path, monkeypatch, capsys):
    linear.bundle(tmp_path / "best")
    linear.save_onnx(tmp_path / "best-files" / "other.onnx")
    linear.save_data(tmp_path / "data.npz")
    (tmp_path / "device.yaml").write_text(yaml.safe_dump(device.target))
    monkeypatch.chdir(tmp_path)
    paths = ["best", "best-files/other.onnx"]
    more = ["--data", "data.npz", "--mean", "128", "--std", "64", "--rounds", "6", "--quick", "-o", "raw.jsonl"]
    assert main(["bench", *paths, "--target", "device.yaml", *more, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in told["measurements"]] == paths
    assert told["measurements"][0]["proof"]["samples"] == 4
    assert [row["quality"]["value"] for row in told["measurements"]] == [1.0, 1.0]
    lines = [json.loads(line) for line in Path("raw.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == paths
    assert lines[0]["machine"]["python"] == told["machine"]["python"]
    assert not [*(device.cache / "work").iterdir(), *(device.cache / "results").iterdir()]
    linear.bundle(tmp_path / "wrong", wrong_by=1.0)
    assert main(["bench", "wrong", "--target", "device.yaml"]) == 4
    assert "wrong" in capsys.readouterr().err


@sshd.needed
def test_several_devices_are_measured_at_once_and_one_out_of_reach_costs_itself(device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    linear.bundle(tmp_path / "best")
    for name, changes in {"here": {}, "there": {"threads": 2}, "gone": {"port": 1}}.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**device.target, **changes}))
    targets = [f"--target={name}.yaml" for name in ("here", "gone", "there")]
    assert main(["bench", "best", *targets, "--quick", "-o", "raw.jsonl", "--json"]) == 6
    here, gone, there = json.loads(capsys.readouterr().out)["devices"]
    assert gone["error"]["type"] == "TargetUnreachable"
    for found in (here, there):
        assert found["measurements"][0]["latency_ns"]["p50"]["value"] > 0
    assert sorted(path.name for path in tmp_path.glob("raw*")) == ["raw-here.jsonl", "raw-there.jsonl"]
    assert not sshd.on_device(device)


@sshd.needed
@pytest.mark.parametrize(
    ("change", "code", "message", "remedy"),
    [
        ({"ssh": "no-such-host.invalid"}, 6, "there is no host no-such-host.invalid", "spelling"),
        ({"port": 1}, 6, "refuses the connection", "SSH server"),
        ({"known_hosts": "{folder}/unknown"}, 6, "is not known in", "ssh-keyscan -p"),
        ({"known_hosts": "{folder}/changed"}, 6, "is not the one that is known", "ssh-keygen -R"),
        ({"key": "{folder}/stranger"}, 6, "does not let us in", "ssh-copy-id"),
        ({"key": "{folder}/chatty"}, 6, "prints text of its own (Welcome)", ".bashrc"),
        ({"key": "/no/such/key"}, 2, "no such file for key", "on this machine"),
        ({"python": "/no/such/python"}, 6, "there is no Python", "Python 3.9 or newer"),
        ({"python": "{folder}/old python"}, 6, "is Python 3.8.1", "name it in the target"),
        ({"python": "{folder}/bare"}, 5, "has no numpy", "bare -m pip install numpy"),
        ({"compile": ["openvino"]}, 5, "the backend openvino does not run", "-m pip install openvino"),
        ({"base": "raspberry-pi-5"}, 2, "is aarch64, and", "base"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_is_not_there_is_told_before_anything_is_built(
    device, recipe, capsys, tmp_path, monkeypatch, change, code, message, remedy
):
    monkeypatch.setenv("EDGEOPT_CACHE", str(tmp_path / "store"))
    script(device.folder / "old python", f"import sys\nsys.version_info = (3, 8, 1)\n{SKIP}")
    script(device.folder / "bare", f"import sys\nsys.path = [p for p in sys.path if 'site-packages' not in p]\n{SKIP}")
    change = {k: v.format(folder=device.folder) if isinstance(v, str) else v for k, v in change.items()}
    found = convert(recipe(**change), capsys)
    assert found.code == found.json["error"]["exit_code"] == code
    assert message in found.err
    assert remedy in found.err
    assert len(found.err.splitlines()) <= 5
    assert not list((tmp_path / "store" / "entries").glob("*"))


# The rest of a script that stands for an interpreter: what follows on its command line, as that would run it.
SKIP = """\
import runpy
sys.argv = sys.argv[1:]
if sys.argv[0] == "-c":
    code = compile(sys.argv[1], "-c", "exec")
    sys.argv[:2] = ["-c"]
    exec(code)
else:
    sys.path.insert(0, sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def script(path, text):
    path.write_text(f"#!{environment('onnxruntime')}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"ssh": "-oProxyCommand=touch /tmp/x"}, "is no host"),
        ({"ssh": "pi@host; reboot"}, "is no host"),
        ({"ssh": "pi@$(reboot)"}, "is no host"),
        ({"ssh": "pi@host:2222"}, "write the port as port: 22"),
        ({"ssh": "pi@host", "port": 70000}, "up to 65535"),
        ({"ssh": "pi@host", "key": "id"}, "begin with / or ~/"),
        ({"port": 22}, "needs ssh: user@host"),
        ({"ssh": "pi@host", "reach": {"local": True}}, "says it already"),
        ({"reach": {"ssh": "pi@host", "shell": "x"}}, "no way to reach it"),
        ({"sh": "pi@host"}, "did you mean 'ssh'"),
    ],
)
def test_a_wrong_address_is_told(written, message):
    with pytest.raises(EdgeoptError) as caught:
        catalog.target_from(written)
    assert message in caught.value.message


@pytest.mark.parametrize("host", ["raspberrypi", "pi@192.168.1.20", "pi@fe80::1%eth0", "jetson_1.local"])
def test_an_address_is_taken(host):
    target = catalog.target_from({"ssh": host, "port": 2222, "key": "~/.ssh/id"}, base="raspberry-pi-5")
    assert target.reach == {"ssh": host, "port": 2222, "key": "~/.ssh/id"}
    assert (target.name, target.is_local) == ("raspberry-pi-5", False)


def test_a_target_that_says_no_way_is_told(capsys):
    with pytest.raises(EdgeoptError, match="does not say how it is reached") as caught:
        devices.find(catalog.target("raspberry-pi-5"))
    assert "ssh: user@host" in (caught.value.remedy or "")


def test_a_worker_that_hears_nothing_ends():
    code = "import time; from edgeopt import worker; worker.SILENCE_SECONDS = 0.5\n"
    code += "def job(args, channel): time.sleep(60)\nworker.main(far=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdin.write(b'{"call": "__main__:job", "args": {}}\n')
    process.stdin.flush()
    try:
        assert process.wait(timeout=30) != 0
    finally:
        process.kill()
        process.communicate()


def test_what_killed_processes_left_is_removed_on_both_sides(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dead = subprocess.Popen(["true"])
    dead.wait()
    work = tmp_path / "edgeopt-device" / "work"
    for pid in (dead.pid, os.getpid()):
        (tmp_path / f"edgeopt-ssh-{pid}-abc").mkdir()
        (work / f"{pid}-abc").mkdir(parents=True)  # not locked: it was killed before that, or is about to be
    openssh._sweep(tmp_path)
    remote._sweep()
    assert [path.name for path in tmp_path.glob("edgeopt-ssh-*")] == [f"edgeopt-ssh-{os.getpid()}-abc"]
    assert [path.name for path in work.iterdir()] == [f"{os.getpid()}-abc"]


def test_files_arrive_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000))
    stream = io.BytesIO()
    write_files(stream, [("x/a", tmp_path / "a")])
    assert read_files(io.BytesIO(stream.getvalue()), tmp_path / "there", by_content=False) == 1
    assert (tmp_path / "there" / "x" / "a").read_bytes() == bytes(1000)
    for cut in (10, 500, len(stream.getvalue()) - 14):
        with pytest.raises((CorruptArtifact, ValueError)):
            read_files(io.BytesIO(stream.getvalue()[:cut]), tmp_path / f"cut-{cut}", by_content=False)
    assert not list((tmp_path / "cut-500" / "x").iterdir())
    with pytest.raises(CorruptArtifact, match="other content"):
        read_files(io.BytesIO(stream.getvalue().replace(b"x/a", b"0" * 64)), tmp_path / "by-content", by_content=True)


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", ""])
def test_no_file_is_written_outside(tmp_path, name):
    (tmp_path / "a").touch()
    stream = io.BytesIO()
    write_files(stream, [(name, tmp_path / "a")])
    stream.seek(0)
    with pytest.raises(CorruptArtifact, match="no name below"):
        read_files(stream, tmp_path / "there", by_content=False)


@pytest.mark.parametrize(
    "answer", ["", "[]", "null", "{}", '{"groups": 3}', '{"groups": [{"rounds": []}]}', "[" * 100_000, '{"a": NaN}']
)
def test_an_answer_that_is_no_session_is_told(answer, tmp_path):
    (tmp_path / "session.json").write_text(answer)
    with pytest.raises(CorruptArtifact, match="what the device answered is not a session"):
        read_answer(tmp_path / "session.json", tmp_path)
