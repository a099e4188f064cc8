"""Worker processes: what they import, and what is told of those that end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest

import edgeopt
from edgeopt import worker
from edgeopt.errors import InputError, StageError, WorkerCrashed
from edgeopt.worker import Limits, Worker

JOBS = """
import os, sys, time
from edgeopt.errors import InputError

def echo(args, channel):
    print("noise for the log")
    channel.progress(0.5, "half")
    return {"args": args, "path": sys.path, "edgeopt": sys.modules["edgeopt"].__file__}

def wrong(args, channel):
    raise InputError("no such thing", remedy="Try another.")

def bug(args, channel):
    raise RuntimeError("first line\\nsecond line")

def leave(args, channel):
    os._exit(3)

def answer(args, channel):
    while True:
        channel.send({"got": channel.receive()})

def wrong_after_a_message(args, channel):
    channel.receive()
    raise InputError("told late")

def nan(args, channel):
    return {"value": float("nan")}

def sleep(args, channel):
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def jobs(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "jobs_of_tests.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "jobs"))


def call(name, tmp_path, **options):
    return worker.call(f"jobs_of_tests:{name}", {"n": 1}, log=tmp_path / "log", **options)


def test_result_progress_and_log(tmp_path):
    told = []
    found = call("echo", tmp_path, progress=lambda fraction, text: told.append((fraction, text)))
    assert found["args"] == {"n": 1}
    assert told == [(0.5, "half")]
    assert "noise for the log" in (tmp_path / "log").read_text()


def test_an_error_keeps_its_class_and_remedy(tmp_path):
    with pytest.raises(InputError, match="no such thing") as caught:
        call("wrong", tmp_path)
    assert caught.value.remedy == "Try another."


def test_a_strange_error_is_a_failed_stage_of_one_line(tmp_path):
    with pytest.raises(StageError, match=r"^RuntimeError: first line$"):
        call("bug", tmp_path)


def test_an_exit_without_a_result_is_a_crash(tmp_path):
    with pytest.raises(WorkerCrashed, match="exit code 3 and no result"):
        call("leave", tmp_path)


def test_a_time_limit(tmp_path):
    with pytest.raises(WorkerCrashed, match="past its limit of 1 s"):
        call("sleep", tmp_path, limits=Limits(seconds=1))


def test_messages_go_both_ways(tmp_path):
    with Worker("jobs_of_tests:answer", {}, log=tmp_path / "log") as process:
        process.send({"n": 1})
        assert process.receive() == {"got": {"n": 1}}
        with pytest.raises(WorkerCrashed, match="no sign of life for 0 s"):
            process.receive(seconds=0.2)


def test_the_last_words_of_a_process_that_takes_no_more_messages(tmp_path):
    name = "jobs_of_tests:wrong_after_a_message"
    with Worker(name, {}, log=tmp_path / "log") as process, pytest.raises(InputError, match="told late"):
        for _ in range(10_000):
            process.send({"filler": "x" * 10_000})


def test_not_a_number_is_no_json(tmp_path):
    with pytest.raises(StageError, match="JSON compliant"):
        call("nan", tmp_path)


def test_another_interpreter_gets_edgeopt_and_nothing_beside_it(tmp_path):
    site = tmp_path / "site-packages"
    shutil.copytree(Path(edgeopt.__file__).parent, site / "edgeopt", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from edgeopt import worker; "
    code += "print(json.dumps(worker.call('jobs_of_tests:echo', {}, log=Path(sys.argv[2]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(site), str(tmp_path / "log")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert Path(found["edgeopt"]).is_relative_to(site.resolve())
    assert str(site) not in found["path"]


def test_a_zipapp_starts_workers_of_itself(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(Path(edgeopt.__file__).parent, source / "edgeopt", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "__main__.py").write_text(
        "import json, sys\nfrom pathlib import Path\nfrom edgeopt import worker\n"
        "print(json.dumps(worker.call('jobs_of_tests:echo', {}, log=Path(sys.argv[1]))))\n"
    )
    zipapp.create_archive(source, tmp_path / "kit.pyz")
    shutil.rmtree(source)
    done = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "kit.pyz"), str(tmp_path / "log")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "kit.pyz" in json.loads(done.stdout)["edgeopt"]


def test_modules_of_the_current_folder_do_not_hide_the_standard_library(tmp_path, monkeypatch):
    (tmp_path / "queue.py").write_text("raise SystemExit('the wrong queue')")
    monkeypatch.chdir(tmp_path)
    assert call("echo", tmp_path)["args"] == {"n": 1}


def test_leaving_the_context_ends_the_process(tmp_path):
    with Worker("jobs_of_tests:sleep", {}, log=tmp_path / "log") as process:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
